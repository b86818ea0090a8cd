"""FasterVLM: "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", arXiv 2412.01818 (version 1).

    a_i = mean over heads of A_h[CLS, i] in the layer that produced the features (hidden layer -2)
    keep the K largest a_i

Prunes: selection before the projector, mask after it; so for us, after the projector. Needs: saliency. One sort,
O(N log N). Differs from the authors' code: the scores stay in float32 (theirs are cast to float16 before the mean
over heads, which makes ties at the scale of 1/577), and equal scores go to the lowest row (theirs: whatever `topk`
does). In LLaVA-NeXT they count the budget per tile: `per="tile"`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsr.methods.base import Method, Picks, register
from fsr.methods.saliency import by_score
from fsr.tokens import VisualTokens

__all__ = ["FasterVLM"]


@register
@dataclass(frozen=True)
class FasterVLM(Method):
    """Top-K by [CLS] attention. Options: those of `Method`."""

    name = "fastervlm"
    paper = "arXiv 2412.01818v1"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"saliency"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        return by_score(self.need(tokens, "saliency"), k)
