"""Relevance top-K: keep what resembles the question and nothing else (ablation baseline).

Keep the K tokens with the highest relevance. This is FSR without saliency (beta = 0) and without Scan and Refine.
Prunes after the projector; needs relevance, whose sign the text tower has applied already (higher = more relevant).
"""

from __future__ import annotations

from dataclasses import dataclass

from fsr.methods.base import Method, Picks, register
from fsr.methods.saliency import by_score
from fsr.tokens import VisualTokens

__all__ = ["Relevance"]


@register
@dataclass(frozen=True)
class Relevance(Method):
    """Top-K by relevance (ablation baseline). Options: those of `Method`."""

    name = "relevance"
    paper = "none (ablation of FSR, arXiv 2602.05809)"
    licence_note = "no outside code"
    needs = frozenset({"relevance"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        return by_score(self.need(tokens, "relevance"), k)
