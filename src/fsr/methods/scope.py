"""SCOPE: "Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", arXiv 2510.24214 (NeurIPS 2025).

    S_ij = cos(h_i, h_j);  w_j = a_j^alpha;  c_i = 0
    K times:  j* = argmax_j w_j * sum_i max(0, S_ij - c_i);   c_i = max(c_i, S_ij*)       # facility location x saliency

Prunes: chosen on features before the projector, mask after it. Needs: saliency a (a common factor such as sum instead
of mean over heads changes nothing), encoder features h. Cost: N^2 a step; the lazy greedy of `kernels.coverage` on
the CPU asks only for gains that can still win.
Differs from the authors' code: kept tokens are never picked again and ties go to the lowest index; float32. Their
budget in LLaVA-NeXT is total / tiles for each tile: `per="tile"` with that number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from fsr.kernels import cosine, coverage
from fsr.methods.base import Method, Picks, register
from fsr.methods.options import EXPONENT
from fsr.tokens import Stage, VisualTokens

__all__ = ["Scope"]


@register
@dataclass(frozen=True)
class Scope(Method):
    """Coverage of all tokens, weighted by the saliency of the one that covers.

    Args:
        alpha: exponent of saliency, >= 0.
    """

    name = "scope"
    paper = "arXiv 2510.24214"
    licence_note = "authors' code has no licence file; written from the formulas"
    needs = frozenset({"saliency", "encoder"})

    alpha: Annotated[float, EXPONENT] = 1.0

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        weight = self.need(tokens, "saliency").float().clamp_min(0) ** self.alpha
        rows = coverage(cosine(self.need(tokens, "encoder")), weight, k)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.FOCUS)), priority=weight)
