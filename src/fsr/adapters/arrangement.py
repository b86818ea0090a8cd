"""How the patches of a packed tower become tokens: which of them, in which order, and the tokens in between that are
made of none (line ends, marks around a picture).

Read off one call, from what each patch flows into (`provenance`); every later picture must have the number of tokens
that follows from its grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

__all__ = ["Arrangement", "Grid", "arrangement_of"]

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Arrangement:
    """merge: m x m patches make a token. raster: patches stand row by row, else those of a token follow one another.

    before, line_end, after: tokens without patches in front of a picture, at the end of each of its rows, behind it.
    """

    merge: int
    raster: bool
    before: int = 0
    line_end: int = 0
    after: int = 0

    def fits(self, grid: Grid, count: int) -> bool:
        """Whether a picture of t x h x w patches has this number of tokens."""
        t, h, w = grid
        if h % self.merge or w % self.merge:
            return False
        rows, cols = t * h // self.merge, w // self.merge
        return count == self.before + rows * (cols + self.line_end) + self.after

    def owners(self, grid: Grid) -> Tensor:
        """The token of every patch of one picture, long [t * h * w]."""
        t, h, w = grid
        m = self.merge
        rows, cols = t * h // m, w // m
        token = torch.arange(rows)[:, None] * (cols + self.line_end) + torch.arange(cols) + self.before
        if not self.raster:
            return token.flatten().repeat_interleave(m * m)
        return token.repeat_interleave(m, 0).repeat_interleave(m, 1).flatten()

    def pack(self, value: Tensor, grid: Grid) -> Tensor:
        """Channels of the patches of one picture [t * h * w, C] as tokens [N, m^2, C]; NaN where there is no patch."""
        t, h, w = grid
        m = self.merge
        if self.raster:
            value = value.unflatten(0, (t * h // m, m, w // m, m)).transpose(1, 2).flatten(0, 3)
        rows = value.unflatten(0, (t * h // m, w // m, m * m))

        def blank(*shape: int) -> Tensor:
            return value.new_full((*shape, m * m, value.shape[-1]), torch.nan)

        rows = torch.cat([rows, blank(len(rows), self.line_end)], dim=1).flatten(0, 1)
        return torch.cat([blank(self.before), rows, blank(self.after)])


def arrangement_of(owner: Tensor, grids: list[Grid], counts: list[int]) -> Arrangement | None:
    """The arrangement of pictures with these grids of patches and numbers of tokens; None if there is no such one.

    owner: long [patches], the token that each patch flows into, numbered through all pictures.
    """
    sizes = torch.bincount(owner.clamp_min(0), minlength=sum(counts))
    real = sizes > 0
    merge = isqrt(int(sizes.max()))
    if bool((owner < 0).any()) or bool((sizes[real] != merge**2).any()):
        return None
    # From the picture with most rows: with a single row, its end and the picture's could not be told apart.
    at = max(range(len(grids)), key=lambda i: grids[i][0] * grids[i][1])
    t, h, w = grids[at]
    rows, cols, first = t * h // merge, w // merge, sum(counts[:at])
    there = real[first : first + counts[at]].nonzero().squeeze(-1).tolist()
    if len(there) != rows * cols or not there:
        return None
    before, spare = there[0], counts[at] - rows * cols
    line_end = there[cols] - there[cols - 1] - 1 if rows > 1 else 0
    after = spare - before - rows * line_end
    for raster in (False, True):
        found = Arrangement(merge, raster, before, line_end, after)
        starts = [sum(counts[:i]) for i in range(len(grids))]
        if after >= 0 and all(found.fits(g, n) for g, n in zip(grids, counts)):
            if torch.equal(owner, torch.cat([found.owners(g) + s for g, s in zip(grids, starts)])):
                return found
    return None
