"""The query and key projections of a language model's first attention layer, called through its own modules, so that
quantised weights, adapters (LoRA) and weights kept on another device work as in a forward.

In hybrid stacks (Qwen3.5: three Gated DeltaNet layers before each attention layer) it is the first layer with softmax
attention that counts. Layers with a sliding window have the same projections as others and count too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsr.errors import RelevanceError

__all__ = ["TextProjections", "call_module", "text_projections"]

# Norm in front of the attention, by the names that decoder layers give it.
INPUT_NORMS = ("input_layernorm", "operator_norm", "pre_attn_norm", "norm")
# Layers that normalise behind attention and MLP only (OLMo 2, EXAONE 4) have both of these and none of the above.
POST_NORMS = {"post_attention_layernorm", "post_feedforward_layernorm"}
# Norms of queries and keys. Some families apply them behind the rotation; both are then read at position 0.
HEAD_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
BOTH_NORM = "qk_norm"
OTHERWISE = "give relevance='none', 'embedding' or a scorer"


@dataclass(frozen=True)
class TextProjections:
    """One attention layer's way from embeddings to queries and keys.

    index: number of the layer; heads: query heads H; width: d of each head.
    """

    embedding: nn.Module
    norm: nn.Module | None
    attention: Any
    index: int
    heads: int
    width: int

    def embed(self, ids: list[int]) -> Tensor:
        """Token numbers to embeddings [T, D], by the model's own module (Gemma's scales them)."""
        return call_module(self.embedding, torch.tensor([ids]))[0]

    def queries(self, states: Tensor) -> Tensor:
        """Embeddings [T, D] to queries [T, H, d], before rotary positions.

        Raises:
            RelevanceError: the projection does not give H heads.
        """
        flat = self._project(self.attention.q_proj, states)
        if flat.shape[-1] == 2 * self.heads * self.width:  # Qwen3.5: a gate beside the query of each head
            flat = flat.unflatten(-1, (self.heads, 2, self.width))[..., 0, :].flatten(-2)
        if flat.shape[-1] != self.heads * self.width:
            raise RelevanceError(
                f"the first layer's query projection gives {flat.shape[-1]} values for {self.heads} heads of "
                f"{self.width}: it is split over processes, or of a kind not known here; {OTHERWISE}."
            )
        return self._by_head(flat, 0)

    def keys(self, states: Tensor) -> Tensor:
        """Features [N, D] to keys [N, H_k, d], before rotary positions.

        Raises:
            RelevanceError: the projection gives no heads that H query heads could share.
        """
        flat = self._project(self.attention.k_proj, states)
        shared, rest = divmod(flat.shape[-1], self.width)
        if rest or not shared or self.heads % shared:
            raise RelevanceError(
                f"the first layer's key projection gives {flat.shape[-1]} values, which {self.heads} heads of "
                f"{self.width} cannot share: {OTHERWISE}."
            )
        return self._by_head(flat, 1)

    def _project(self, projection: nn.Module, states: Tensor) -> Tensor:
        states = states[None]
        return call_module(projection, states if self.norm is None else call_module(self.norm, states))

    def _by_head(self, flat: Tensor, which: int) -> Tensor:
        """[1, T, heads * d] to [T, heads, d] under the norm of queries (which = 0) or keys (1), if there is one."""
        split = flat.unflatten(-1, (-1, self.width))
        norm = _head_norm(self.attention, which)
        if norm is None:
            return split[0]
        weight = getattr(norm, "weight", None)
        if isinstance(weight, Tensor) and weight.numel() == flat.shape[-1]:
            flat_norm = weight.dim() == 1 and split.shape[-2] > 1  # OLMo 2: over all heads together
            return call_module(norm, flat).view(split.shape)[0] if flat_norm else call_module(norm, split)[0]
        return call_module(norm, split)[0]


def text_projections(model: Any) -> TextProjections:
    """Those of the first softmax-attention layer of a vision-language model.

    Raises:
        RelevanceError: no decoder layers, no layer with projections of its own for queries and keys, norms that are not
            known here, or weights of which other processes hold a part.
    """
    decoder = model.get_decoder() if callable(getattr(model, "get_decoder", None)) else None
    layers = getattr(decoder, "layers", None)
    family = type(model).__name__
    if not isinstance(layers, nn.ModuleList):
        raise RelevanceError(f"{family} has no list of decoder layers to take a first one from: {OTHERWISE}.")
    found = next(((i, a) for i, layer in enumerate(layers) if (a := _attention(layer)) is not None), None)
    if found is None:
        raise RelevanceError(
            f"no decoder layer of {family} has a query and a key projection of its own (they are fused, shared or "
            f"missing): {OTHERWISE}."
        )
    index, attention = found
    heads = getattr(getattr(attention, "config", None) or decoder.config, "num_attention_heads", None)  # type: ignore[union-attr]
    width = getattr(attention, "head_dim", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        raise RelevanceError(f"{type(attention).__name__} does not say how many heads it has: {OTHERWISE}.")
    known = {BOTH_NORM, "v_norm", *(name for pair in HEAD_NORMS for name in pair)}
    strange = sorted(n for n, _ in attention.named_children() if "norm" in n and n not in known)
    if strange:
        raise RelevanceError(
            f"{type(attention).__name__} has norms not known here ({', '.join(strange)}): {OTHERWISE}."
        )
    norm = _input_norm(layers[index])
    for part in (attention.q_proj, attention.k_proj):
        for weight in part.parameters():
            if weight.numel() == 0 or hasattr(weight, "placements"):  # ZeRO-3 and FSDP; DTensor
                raise RelevanceError(
                    f"the first layer's projections of {family} are split over processes: {OTHERWISE}, or gather them."
                )
    return TextProjections(model.get_input_embeddings(), norm, attention, index, heads, width)


# ----------------------------------------------------------------------------------------------------------------------


def _attention(layer: nn.Module) -> Any:
    """The self-attention of a decoder layer if it projects queries and keys by modules of their own, else None."""
    for name, child in layer.named_children():
        asks, answers = (getattr(child, part, None) for part in ("q_proj", "k_proj"))
        own = isinstance(asks, nn.Module) and isinstance(answers, nn.Module) and asks is not answers
        if own and "cross" not in name:
            return child
    return None


def _input_norm(layer: nn.Module) -> nn.Module | None:
    """The norm in front of a layer's attention; None where the layer normalises only behind it."""
    children = dict(layer.named_children())
    for name in INPUT_NORMS:
        if name in children:
            return children[name]
    if POST_NORMS <= children.keys():
        return None
    raise RelevanceError(f"{type(layer).__name__} has no norm before its attention that is known here: {OTHERWISE}.")


def _head_norm(attention: Any, which: int) -> nn.Module | None:
    for pair in HEAD_NORMS:
        if isinstance(norm := getattr(attention, pair[which], None), nn.Module):
            return norm
    both = getattr(attention, BOTH_NORM, None)
    return both if isinstance(both, nn.Module) else None


def call_module(module: nn.Module, values: Tensor) -> Tensor:
    """The module's output. Weights that hooks bring in only for the call lie on no device until then."""
    weight = next((p for p in module.parameters() if not p.is_meta), None)
    return module(values if weight is None else values.to(weight.device))
