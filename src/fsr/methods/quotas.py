"""Groups of tokens inside one image (crops, windows, runs) and how a budget is split over them; shared by several
methods.

Letters: B stacked images, N tokens, G groups, K budget. Ties go to the lowest index everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fsr.tokens import Geometry

__all__ = ["apportion", "crops", "rank_in_group", "take_quota", "windows"]


def apportion(weight: Tensor, total: int, room: Tensor) -> Tensor:
    """Split `total` over groups in proportion to `weight`, in whole numbers that add up to it.

    floor(share * total) each, then one more to the groups of largest weight until nothing is left over (HoloV, Eq. 7
    and its code), never more than a group has room for. All weights zero: equal shares.

    Args:
        weight: [B, G], negative counts as zero. total: at most room.sum(). room: long [B, G] or [G].
    Returns:
        long [B, G].
    """
    weight = weight.clamp_min(0)
    weight = torch.where(weight.sum(-1, keepdim=True) > 0, weight, torch.ones_like(weight))
    share = weight / weight.sum(-1, keepdim=True)
    room = room.expand(weight.shape)
    given = torch.minimum((share * total).floor().long(), room)
    by_weight = share.argsort(dim=-1, descending=True, stable=True)
    while True:
        left = total - given.sum(-1, keepdim=True)
        if not bool((left > 0).any()):
            return given
        open_ = (given < room).gather(-1, by_weight)
        more = open_ & (open_.long().cumsum(-1) <= left)
        given = given.scatter_add(-1, by_weight, more.long())


def rank_in_group(score: Tensor, group: Tensor) -> Tensor:
    """Position of each token among its group's tokens by falling score, 0 = highest. score, group (long): [B, N];
    result long [B, N]."""
    by_score = score.argsort(dim=-1, descending=True, stable=True)
    order = by_score.gather(-1, group.gather(-1, by_score).argsort(dim=-1, stable=True))
    sorted_group = group.gather(-1, order)
    place = torch.arange(score.shape[-1], device=score.device).expand_as(group)
    first = torch.ones_like(sorted_group, dtype=torch.bool)
    first[:, 1:] = sorted_group[:, 1:] != sorted_group[:, :-1]
    start = torch.where(first, place, 0).cummax(-1).values
    return torch.empty_like(group).scatter_(-1, order, place - start)


def take_quota(score: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """The `quota[b, g]` best tokens of each group, group by group; every image's quotas must add up to the same K.

    score [B, N], group long [B, N] with values below G, quota long [B, G]; result long [B, K].
    """
    rank = rank_in_group(score, group)
    chosen = rank < quota.gather(-1, group)
    n = score.shape[-1]
    key = torch.where(chosen, group * n + rank, quota.shape[-1] * n)
    return key.argsort(dim=-1, stable=True)[:, : int(quota[0].sum())]


def crops(geometry: Geometry | None, batch: int, count: int, device: torch.device) -> Tensor:
    """Which crop of which frame each token belongs to: long [B, N], numbered from 0 without gaps, frame by frame,
    tile by tile."""
    if geometry is None:
        return torch.zeros(batch, count, dtype=torch.long, device=device)
    label = geometry.frame * (int(geometry.tile.max()) + 2) + geometry.tile + 1
    return torch.stack([row.unique(return_inverse=True)[1] for row in label]).to(device)


def windows(geometry: Geometry | None, crop: Tensor, side: int) -> Tensor:
    """Cut every crop into side x side windows by the centres of its tokens: long [B, N], crop * side^2 + window.

    Without geometry each crop is one window.
    """
    if geometry is None:
        return crop
    boxes = geometry.boxes.to(crop.device)
    low, high = torch.empty_like(boxes[..., :2]), torch.empty_like(boxes[..., :2])
    for c in range(int(crop.max()) + 1):
        here = (crop == c)[..., None]
        inside = boxes.masked_fill(~here, torch.inf)[..., :2].amin(-2, keepdim=True)
        outside = boxes.masked_fill(~here, -torch.inf)[..., 2:].amax(-2, keepdim=True)
        low, high = torch.where(here, inside, low), torch.where(here, outside, high)
    centre = ((boxes[..., :2] + boxes[..., 2:]) / 2 - low) / (high - low).clamp_min(1e-12)
    cell = (centre * side).long().clamp(0, side - 1)
    return crop * side * side + cell[..., 1] * side + cell[..., 0]
