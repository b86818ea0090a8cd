"""Relevance from the language model's own first attention layer: what its queries of the question say to its keys of
the picture, before rotary positions. It needs no text tower, so it exists for every family.

    x = norm(embeddings),  q_t = W_q x_t on the T tokens of the question,  k_v = W_k x_v on the N visual tokens
    s_hv = mean_t q_t.k_v / sqrt(d)  for each head h;   r_v = sum_h w_h s_hv / |s_h|_2

HAWK ("Head Importance-Aware Visual Token Pruning in Multimodal Models", arXiv 2604.07812, CVPR 2026), written from the
formulas. One projection of each token: no attention map and no further pass. The mean over the question is taken before
the product, which is linear.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.errors import RelevanceError, counted
from fsr.signals.question_tokens import question_ids, tokenizer_of
from fsr.signals.text_projections import text_projections

__all__ = ["HAWK_QWEN2_5_VL_7B", "FirstLayerRelevance", "head_scores", "weighted_heads"]

# The weights of HAWK's authors for the 28 heads of Qwen2.5-VL-7B, found by leaving out one head at a time
# (github.com/peppery77/HAWK, src/hawk/config.py, Apache-2.0). Only their ratios matter.
HAWK_QWEN2_5_VL_7B = (
    0.0875, 0.3000, 0.0480, 0.0321, 0.0104, 0.0102, 0.0336, 0.0460, 0.0540, 0.0472, 0.0234, 0.0537, 0.0109, 0.0573,
    0.0276, 0.0403, 0.0429, 0.0352, 0.0162, 0.0519, 0.0553, 0.0266, 0.0222, 0.0480, 0.0337, 0.0250, 0.0000, 0.0224,
)  # fmt: skip


def head_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """One row per head: scores of N visual tokens for a question of T tokens, each row of L2 norm 1.

    queries: [T, H, d] and keys: [N, H_k, d], after norms and before rotary positions; H is a multiple of H_k (grouped
    queries: query head h reads key head h // (H / H_k)). Returns float32 [H, N].
    """
    asked = queries.float().mean(0)
    heads, width = asked.shape
    shared = keys.shape[1]
    rows = asked.view(shared, heads // shared, width) @ keys.float().permute(1, 2, 0)
    return normalize(rows.flatten(0, 1) * width**-0.5, dim=-1)


def weighted_heads(rows: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Sum of the rows [H, N] of `head_scores` with one weight per head (None: 1 / H for each): float32 [N].

    Raises:
        RelevanceError: another number of weights than heads, or weights that are not finite or all zero.
    """
    if weights is None:
        return rows.mean(0)
    given = [float(w) for w in weights]
    if len(given) != rows.shape[0]:
        raise RelevanceError(
            f"{counted(len(given), 'head weight')} for a first layer of {counted(rows.shape[0], 'head')}: they belong "
            "to another model."
        )
    if not all(map(math.isfinite, given)) or not any(given):
        raise RelevanceError("head weights must be finite and not all zero: calibrate again, or leave them out.")
    return rows.new_tensor(given) @ rows


@dataclass(frozen=True)
class FirstLayerRelevance:
    """A scorer of projected features [N, D], bound to a model. Two that read the same model with the same weights are
    equal.

    Args:
        model: a vision-language model of Transformers.
        weights: one per query head of its first attention layer, or None for equal ones.
        tokenizer: of the model; None until `bound`.

    Raises:
        RelevanceError: when it scores: no such layer, or projections that cannot be used (see `text_projections`).
    """

    model: Any
    weights: tuple[float, ...] | None = None
    tokenizer: Any = field(default=None, compare=False, repr=False)

    layer = -1
    reads_features = True

    @property
    def source(self) -> str:
        """Its name in reports."""
        return "first-layer" if self.weights is None else "first-layer, weighted heads"

    def bound(self, processor: Any) -> FirstLayerRelevance:
        """The same with the tokenizer of a processor, unless it has one.

        Raises:
            RelevanceError: there is no tokenizer.
        """
        if self.tokenizer is not None:
            return self
        return replace(self, tokenizer=tokenizer_of(processor, "first-layer"))

    def check(self) -> None:
        """Raise `RelevanceError` unless the model has the projections, and as many heads as there are weights."""
        heads = text_projections(self.model).heads
        if self.weights is not None:
            weighted_heads(torch.zeros(heads, 1), self.weights)

    @torch.no_grad()
    def heads(self, patches: Tensor, question: str) -> Tensor:
        """Projected features [N, D] -> float32 [H, N], see `head_scores`."""
        project = text_projections(self.model)
        words = project.embed(question_ids(self.tokenizer, question))
        return head_scores(project.queries(words), project.keys(patches.to(words.dtype))).to(patches.device)

    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """Projected features [N, D] -> float32 [N]."""
        return weighted_heads(self.heads(patches, question), self.weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstLayerRelevance:
        """A copied model gets a scorer of its own weights; the tokenizer is shared."""
        return replace(self, model=copy.deepcopy(self.model, memo))
