"""Saliency top-K: the plainest baseline, and what "attention only" means in the ablations.

Keep the K tokens with the highest saliency. This is FSR without relevance (alpha = 0) and without Scan and Refine.
Prunes after the projector; needs saliency. The order is stable: equal scores go to the lowest row.
On LLaVA it is the same rule as FasterVLM (`fastervlm.py`); both names exist because one is a paper and one is an
ablation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.methods.base import Method, Picks, register
from fsr.stages.ranking import top_k
from fsr.tokens import Stage, VisualTokens

__all__ = ["Saliency", "by_score"]


def by_score(score: Tensor, k: int) -> Picks:
    """The k rows of highest score, highest first. score: [B, N]."""
    rows = top_k(score, k)
    return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.FOCUS)), priority=score.float())


@register
@dataclass(frozen=True)
class Saliency(Method):
    """Top-K by saliency (ablation baseline). Options: those of `Method`."""

    name = "saliency"
    paper = "none (ablation of FSR, arXiv 2602.05809)"
    licence_note = "no outside code"
    needs = frozenset({"saliency"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        return by_score(self.need(tokens, "saliency"), k)
