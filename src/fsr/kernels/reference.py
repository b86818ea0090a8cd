"""Plain torch loops, batched over images, on any device, without waiting for it: the definition of every greedy
selection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fsr.kernels.merging import absorb, nearest_anchor
from fsr.kernels.similarity import cosines_of, directions

__all__ = [
    "EXHAUSTED",
    "Heaviest",
    "Spread",
    "absorb",
    "coverage",
    "directions",
    "dpp_map",
    "dpp_tokens",
    "farthest_points",
    "farthest_tokens",
    "heaviest_points",
    "heaviest_tokens",
    "nearest_anchor",
]

# Conditional variance below this share of the largest diagonal entry is rounding error of the float32 similarities.
EXHAUSTED = 1e-6


class Spread(NamedTuple):
    """What farthest-point sampling found.

    order: long [B, K], the preset anchors and then the picks, in the order of choice.
    radius: [B, K], largest 1 - cos from any free token to its nearest chosen one before each free step; NaN at preset
        steps. With nothing chosen yet it is 2, the largest value that 1 - cos has.
    rest: [B], the radius that is left at the end, 0 if all tokens are chosen.
    similarity: [B, N, N], the cosines of all pairs, where they were known or needed.
    """

    order: Tensor
    radius: Tensor
    rest: Tensor
    similarity: Tensor | None = None


class Heaviest(NamedTuple):
    """What `heaviest_points` found.

    rows: long [B, K], the picks in the order of choice, then -1.
    similarity: [B, N, N], the cosines of all pairs, where they were known or needed.
    """

    rows: Tensor
    similarity: Tensor | None = None


def wide(device: torch.device) -> torch.dtype:
    """The dtype of sums that must not depend on their order: float64, but MPS has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def farthest_points(similarity: Tensor, preset: Tensor) -> Spread:
    """See `fsr.kernels.farthest_points`."""
    batch, n, _ = similarity.shape
    image = torch.arange(batch, device=similarity.device)
    nearest = similarity.new_full((batch, n), -1.0)
    order, radius = [], []
    for step in range(preset.shape[1]):
        free = preset[:, step] < 0
        pick = torch.where(free, nearest.argmin(dim=1), preset[:, step])
        gap = 1 - nearest[image, pick]
        radius.append(torch.where(free, gap, torch.full_like(gap, torch.nan)))
        order.append(pick)
        # Chosen tokens are infinitely near, so argmin never returns them.
        nearest = torch.maximum(nearest, similarity[image, pick]).scatter(1, pick[:, None], torch.inf)
    rest = (1 - nearest.amin(dim=1)).clamp(min=0)
    return Spread(torch.stack(order, dim=1), torch.stack(radius, dim=1), rest, similarity)


def farthest_tokens(units: Tensor, preset: Tensor) -> Spread:
    """See `fsr.kernels.farthest_tokens`. A matrix product is cheap where this runs; waiting for the device is not."""
    return farthest_points(cosines_of(units), preset)


def heaviest_points(similarity: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """See `fsr.kernels.heaviest_points`."""
    image = torch.arange(similarity.shape[0], device=similarity.device)
    wider = wide(similarity.device)
    enough = left * weight.sum(dim=1, dtype=wider)
    gap = torch.ones_like(weight)
    rows = []
    for _ in range(k):
        uncovered = weight * gap
        pick = uncovered.argmax(dim=1)
        rows.append(torch.where(uncovered.sum(dim=1, dtype=wider) > enough, pick, -1))
        # What is uncovered only falls, so an image that has enough stays so, whatever happens to its gaps.
        gap = torch.minimum(gap, (1 - similarity[image, pick]).clamp(0, 1)).scatter(1, pick[:, None], 0.0)
    return Heaviest(torch.stack(rows, dim=1), similarity)


def heaviest_tokens(units: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """See `fsr.kernels.heaviest_tokens`."""
    return heaviest_points(cosines_of(units), weight, k, left)


def dpp_map(similarity: Tensor, quality: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.dpp_map`."""
    batch, n, _ = similarity.shape
    image = torch.arange(batch, device=similarity.device)
    q = quality.to(wide(similarity.device))
    variance = q * q * similarity.diagonal(dim1=1, dim2=2)
    floor = EXHAUSTED * variance.amax(dim=1, keepdim=True)
    factor = q.new_zeros(batch, k, n)
    taken = torch.zeros(batch, n, dtype=torch.bool, device=similarity.device)
    order = []
    for step in range(k):
        # Rounded to float32: equal tokens tie although float64 sums in another order differ in the last bits.
        gain = torch.where(variance > floor, variance, 0.0).float()
        pick = gain.masked_fill(taken, -1.0).argmax(dim=1)
        order.append(pick)
        pivot = variance[image, pick][:, None]
        live = pivot > floor
        row = q[image, pick][:, None] * similarity[image, pick] * q
        known = (factor[:, :step] * factor[image, :step, pick][:, :, None]).sum(dim=1)
        column = torch.where(live, (row - known) / torch.where(live, pivot, 1.0).sqrt(), 0.0)
        factor[:, step] = column
        variance = variance - column * column
        taken = taken.scatter(1, pick[:, None], True)
    return torch.stack(order, dim=1)


def dpp_tokens(units: Tensor, quality: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.dpp_tokens`."""
    return dpp_map(cosines_of(units), quality, k)


def coverage(similarity: Tensor, weight: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.coverage`."""
    batch, n, _ = similarity.shape
    image = torch.arange(batch, device=similarity.device)
    w = weight.to(wide(similarity.device))
    best = similarity.new_zeros(batch, n)
    taken = torch.zeros(batch, n, dtype=torch.bool, device=similarity.device)
    order = []
    for _ in range(k):
        added = (similarity - best[:, None, :]).clamp(min=0).sum(dim=2, dtype=w.dtype)
        pick = (w * added).float().masked_fill(taken, -1.0).argmax(dim=1)
        order.append(pick)
        best = torch.maximum(best, similarity[image, pick])
        taken = taken.scatter(1, pick[:, None], True)
    return torch.stack(order, dim=1)
