"""Farthest points: Scan alone, the baseline that FSR has to beat at small budgets.

    first = the most salient token;  then K - 1 times  argmax_i min_{j kept} (1 - cos(v_i, v_j))

Prunes after the projector, on projected features; needs saliency for the start only. Equal to FSR with an empty Focus
and no Refine (max_focus = 0, kappa = 0); DivPrune differs in the first token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fsr.kernels import directions, farthest_tokens
from fsr.methods.base import Method, Picks, register
from fsr.tokens import Stage, VisualTokens

__all__ = ["Farthest"]


@register
@dataclass(frozen=True)
class Farthest(Method):
    """Farthest-point sampling from the most salient token. Options: those of `Method`."""

    name = "farthest"
    paper = "none (ablation of FSR, arXiv 2602.05809)"
    licence_note = "no outside code"
    needs = frozenset({"saliency"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        saliency = self.need(tokens, "saliency")
        preset = torch.full((len(saliency), k), -1, dtype=torch.long, device=tokens.features.device)
        preset[:, 0] = saliency.argmax(dim=-1)
        rows, radii, rest, _ = farthest_tokens(directions(tokens.features), preset)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.SCAN)), radii=radii, radius_cos=rest)
