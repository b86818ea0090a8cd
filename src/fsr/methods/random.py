"""Random tokens: the floor that every method has to beat.

K of N rows, uniformly, without replacement. The draw depends on the seed and on N alone: the same image gives the
same rows whichever images stand next to it and on whichever device it lies; images of equal N share their rows. With
`per="tile"` all tiles of equal size therefore lose the same places; vary the seed to average over draws. Prunes
after the projector; needs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from fsr.methods.base import Method, Picks, register
from fsr.methods.options import Within
from fsr.tokens import Stage, VisualTokens

__all__ = ["Random"]


@register
@dataclass(frozen=True)
class Random(Method):
    """Uniformly random tokens.

    Args:
        seed: another seed, another draw.
    """

    name = "random"
    paper = "none (baseline)"
    licence_note = "no outside code"

    seed: Annotated[int, Within(0, 2**32 - 1)] = 0

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        b, n, _ = tokens.features.shape
        # On the CPU, since CUDA generators draw other numbers. A prime keeps (seed, N) pairs apart.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + n) % 2**63)
        rows = torch.randperm(n, generator=generator)[:k].to(tokens.features.device).expand(b, k)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.SCAN)))
