"""CDPruner: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", arXiv
2506.10967 (NeurIPS 2025).

    r_i  = relevance to the question, min-max to [0, 1]
    L_ij = r_i S_ij r_j,  S_ij = cos(v_i, v_j)                 # conditional kernel of a determinantal point process
    kept = greedy MAP: K times the token that adds most to log det L[kept]

Prunes after the projector; v are projected features. Needs: relevance. Cost: one N x N product and K steps of O(N K).
Relevance arrives with its sign applied. The authors negate CLIP's similarity in the method; here the sign belongs to
the text tower (`signals/relevance.py`), so that a tower without the inversion is not turned upside down.
Differs from the authors' code:
- the min-max is per image, not over whatever shares the batch, and a constant relevance becomes all ones (theirs
  divides by zero); `faithful=True` brings back their form, (r - min + 1e-6) / (max - min) over the whole stack;
- when the kernel's rank is used up, theirs takes the root of a negative number and returns NaN picks, repeated tokens
  and fewer than K of them (`with_repeats`); here the lowest free rows fill the budget (`kernels.dpp_map`);
- float32 throughout (theirs normalises in float16). In LLaVA-NeXT they count the budget per tile: `per="tile"`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.kernels import directions, dpp_tokens
from fsr.methods.base import Method, Picks, register
from fsr.stages.normalise import minmax
from fsr.tokens import Stage, VisualTokens

__all__ = ["CDPruner", "stackwide", "with_repeats"]


def stackwide(relevance: Tensor) -> Tensor:
    """The authors' normalisation: one minimum and one maximum for the whole stack. [B, N] to float32 [B, N]."""
    low, high = torch.aminmax(relevance.float())
    return (relevance.float() - low + 1e-6) / (high - low)


def with_repeats(similarity: Tensor, quality: Tensor, k: int) -> Tensor:
    """The greedy MAP as released, for one image: no guard where the rank is used up, so NaN wins every later argmax.

    similarity [N, N], quality [N]; long [k] in the order of choice, repeated once NaN appears. The method never does
    this.
    """
    kernel = quality.float()[:, None] * similarity.float() * quality.float()
    variance = kernel.diagonal().clone()
    history = torch.zeros(k, len(quality), device=kernel.device)
    order = []
    for step in range(k):
        pick = variance.argmax()
        order.append(pick)
        row = (kernel[pick] - history[:step, pick] @ history[:step]) / variance[pick].sqrt()
        history[step] = row
        variance = variance - row.square()
        variance[pick] = -torch.inf
    return torch.stack(order)


@register
@dataclass(frozen=True)
class CDPruner(Method):
    """The K tokens that are together most relevant and most different.

    Args:
        faithful: normalise relevance as the authors' code does (see above); results then depend on the batch.
    """

    name = "cdpruner"
    paper = "arXiv 2506.10967"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"relevance"})

    faithful: bool = False

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        relevance = self.need(tokens, "relevance")
        quality = stackwide(relevance) if self.faithful else minmax(relevance, tokens.relevance_span)
        rows = dpp_tokens(directions(tokens.features), quality, k)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.FOCUS)), priority=quality)
