"""HiRED: "Attention-Guided Token Dropping for Efficient Inference of High-Resolution VLMs", arXiv 2408.10945 (AAAI
2025).

For tiled images (LLaVA-NeXT): tile 0 shows the whole picture, tiles 1.. are its parts.

    base = int(K alpha) tokens for tile 0, the rest of K for the parts
    M = the int(n_0 (1 - alpha)) tokens of tile 0 with the highest [CLS] attention of the *first* layer; c_t of them
        lie in part t
    part t gets its share c_t / sum c;  inside every tile: highest [CLS] attention of the deep layer

Prunes: after the projector, before tiles are packed. Needs: saliency (deep layer), `first_saliency`
(docs/methods.md), geometry with tiles. Cost: sorts only. Differs from the authors' code:
- they reshape M flat to (rows, columns, -1), which is no partition of the picture (for 2 x 2 each "quadrant" is six
  full rows); here a token of tile 0 belongs to the part whose area holds its centre;
- K is met exactly: what rounding down or a full tile leaves over goes to the parts by count, then back to tile 0
  (theirs loses it);
- alpha has one meaning (in theirs code and comments differ): share of tile 0, and 1 - alpha the share of M.
One tile, bare tensors, or `per="tile"` leave nothing to divide: top K by saliency (theirs: not pruned at all).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fsr.methods.base import Method, Picks, register
from fsr.methods.options import SHARE
from fsr.methods.quotas import apportion, take_quota
from fsr.methods.saliency import by_score
from fsr.stages.ranking import top_k
from fsr.tokens import Stage, VisualTokens

__all__ = ["HiRED", "tile_budgets"]


def tile_budgets(first: Tensor, boxes: Tensor, tile: Tensor, k: int, alpha: float) -> Tensor:
    """Tokens for each tile of one image, adding up to k.

    first: [N] attention of the first layer; boxes: [N, 4]; tile: long [N], 0 = whole picture, parts numbered 1..T
    without gaps. Returns long [T + 1].
    """
    size = tile.bincount()
    parts = size[1:]
    sub = min(k - min(int(k * alpha), int(size[0])), int(parts.sum()))
    base = (tile == 0).nonzero()[:, 0]
    best = base[top_k(first[base][None], int(len(base) * (1 - alpha)))[0]]
    centre = (boxes[best, :2] + boxes[best, 2:]) / 2
    count = []
    for t in range(1, len(size)):
        area = boxes[tile == t]
        low, high = area[:, :2].amin(0), area[:, 2:].amax(0)
        count.append(((centre >= low) & (centre < high)).all(-1).sum())
    given = apportion(torch.stack(count)[None].float(), sub, parts)[0]
    return torch.cat([(k - given.sum())[None], given])


@register
@dataclass(frozen=True)
class HiRED(Method):
    """Tile budgets by early attention, tokens by late attention.

    Args:
        alpha: share of the budget for the tile that shows the whole picture, in [0, 1].
    """

    name = "hired"
    paper = "arXiv 2408.10945"
    licence_note = "authors' code: MIT; written from the formulas"
    needs = frozenset({"saliency", "first_saliency"})

    alpha: Annotated[float, SHARE] = 0.5

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        saliency, first = self.need(tokens, "saliency"), self.need(tokens, "first_saliency")
        if tokens.geometry is None:
            return by_score(saliency, k)
        chosen = []
        for b in range(saliency.shape[0]):
            one = saliency[b : b + 1]
            label, tile = tokens.geometry.tile[b].to(one.device).unique(return_inverse=True)
            if len(label) == 1 or int(label[0]) != 0:
                chosen.append(top_k(one, k))
                continue
            quota = tile_budgets(first[b], tokens.geometry.boxes[b].to(one.device), tile, k, self.alpha)
            chosen.append(take_quota(one, tile[None], quota[None]))
        rows = torch.cat(chosen)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.FOCUS)), priority=saliency.float())
