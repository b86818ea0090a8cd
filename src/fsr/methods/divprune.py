"""DivPrune: "Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv 2503.02175 (CVPR 2025).

    first = the token whose nearest neighbour is farthest:  argmax_i min_{j != i} (1 - cos(v_i, v_j))
    then K - 1 times:  argmax_i min_{j kept} (1 - cos(v_i, v_j))          # max-min diversity

Prunes after the projector, on projected features; needs no signal and no question. Cost: one N x N product and K steps
of O(N). Written from the formulas alone (the authors' code is CC BY-NC 4.0 and was never opened).
Differs from the described code: kept tokens are never picked again (theirs returns the same token repeatedly once fewer
than K distinct ones are left: `with_repeats`); float32; newline rows of LLaVA-NeXT are no candidates (theirs treats
them as tokens). FSR's Scan is the same greedy step around preset anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.kernels import cosine, farthest_points
from fsr.methods.base import Method, Picks, register
from fsr.tokens import Stage, VisualTokens

__all__ = ["DivPrune", "most_isolated", "with_repeats"]


def most_isolated(similarity: Tensor) -> Tensor:
    """The token whose nearest neighbour is farthest, ties to the lowest index. [B, N, N] to long [B]."""
    others = similarity.clone()
    others.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return others.amax(dim=-1).argmin(dim=-1)


def with_repeats(similarity: Tensor, k: int) -> Tensor:
    """The rule as released: kept tokens stay candidates, at distance 0, so degenerate pictures repeat the lowest of
    them.

    [B, N, N] to long [B, k], in the order of choice. The method itself never does this.
    """
    order = [most_isolated(similarity)]
    image = torch.arange(len(similarity), device=similarity.device)
    nearest = similarity[image, order[0]]
    while len(order) < k:
        order.append((1 - nearest).clamp_min(0).argmax(dim=-1))
        nearest = torch.maximum(nearest, similarity[image, order[-1]])
    return torch.stack(order, dim=1)


@register
@dataclass(frozen=True)
class DivPrune(Method):
    """Max-min diversity. Options: those of `Method`."""

    name = "divprune"
    paper = "arXiv 2503.02175"
    licence_note = "authors' code: CC BY-NC 4.0, never opened; written from the formulas"

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        similarity = cosine(tokens.features)
        first = most_isolated(similarity)
        preset = torch.full((len(first), k), -1, dtype=torch.long, device=first.device)
        preset[:, 0] = first
        rows, radii, rest, _ = farthest_points(similarity, preset)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.SCAN)), radii=radii, radius_cos=rest)
