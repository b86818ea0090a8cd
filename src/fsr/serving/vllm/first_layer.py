"""Relevance from the first attention layer (see `fsr.signals.first_layer`) of a language model as vLLM builds it.

There query, key and value come out of one projection, and the layer's norms are vLLM's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsr.errors import RelevanceError
from fsr.signals.first_layer import head_scores, weighted_heads
from fsr.signals.question_tokens import question_ids

__all__ = ["EngineFirstLayer"]


@dataclass(frozen=True)
class EngineFirstLayer:
    """A scorer of projected features [N, D], like `FirstLayerRelevance`.

    language: vLLM's language model; tokenizer: of the checkpoint; weights: one per query head, or None for equal ones.

    Raises:
        RelevanceError: the first layer has no softmax attention with a projection of that kind, or another number of
            heads than weights.
    """

    language: Any
    tokenizer: Any
    weights: Sequence[float] | None = None

    layer = -1
    reads_features = True
    source = "first-layer"

    def __post_init__(self) -> None:
        first = self.language.model.layers[0]
        parts = {name: getattr(first, name, None) for name in ("input_layernorm", "self_attn")}
        wanted = ("qkv_proj", "q_size", "kv_size", "head_dim")
        if None in parts.values() or not all(hasattr(parts["self_attn"], name) for name in wanted):
            raise RelevanceError(
                f"{type(first).__name__} is no layer whose queries and keys are known here: give relevance='none' or "
                "'embedding'."
            )
        attention: Any = parts["self_attn"]
        if self.weights is not None:  # here, where it ends the start of the engine and not a request
            weighted_heads(torch.zeros(attention.q_size // attention.head_dim, 1), self.weights)

    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """Projected features [N, D] -> float32 [N]."""
        ids = torch.tensor(question_ids(self.tokenizer, question), device=patches.device)
        words = self.language.model.embed_input_ids(ids)
        queries, _ = self._heads(words)
        _, keys = self._heads(patches.to(words.dtype))
        return weighted_heads(head_scores(queries, keys), self.weights)

    def _heads(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """[T, D] to queries [T, H, d] and keys [T, H_k, d], before rotary positions."""
        first = self.language.model.layers[0]
        attention: Any = first.self_attn
        joined, _ = attention.qkv_proj(first.input_layernorm(states.contiguous()))
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        q, k, _ = joined.split(sizes, dim=-1)
        q, k = (x.unflatten(-1, (-1, attention.head_dim)) for x in (q, k))
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        q, k = (x if norm is None else norm(x.contiguous()) for x, norm in zip((q, k), norms))
        return q, k
