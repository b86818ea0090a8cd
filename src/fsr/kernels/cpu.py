"""The same selections on CPU: numpy on memory shared with the tensors.

A greedy step touches one row of a few thousand floats, so that the fixed cost of a torch operator (several
microseconds) is most of a plain loop. numpy's in-place operators cost a fraction of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsr.kernels.lazy import farthest, padded
from fsr.kernels.merging import absorb, nearest_anchor
from fsr.kernels.reference import EXHAUSTED, Heaviest, Spread
from fsr.kernels.similarity import aligned, cosines_of, directions, settle

__all__ = [
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

# Multiplications (N * N * D) up to which the whole matrix of cosines costs less than finding out what to leave out.
_SMALL = 2**25


def farthest_points(similarity: Tensor, preset: Tensor) -> Spread:
    """See `fsr.kernels.farthest_points`."""
    batch, n, _ = similarity.shape
    order = preset.clone()
    radius = torch.full(preset.shape, torch.nan, dtype=similarity.dtype)
    nearest = torch.full((batch, n), -1.0, dtype=similarity.dtype)
    for b in range(batch):
        rows, picks, gaps, near = similarity[b].numpy(), order[b].numpy(), radius[b].numpy(), nearest[b].numpy()
        fixed = picks[picks >= 0]
        np.maximum.reduce(rows[fixed], axis=0, initial=-1.0, out=near)
        near[fixed] = np.inf
        for step in range(len(fixed), len(picks)):
            pick = near.argmin()
            picks[step] = pick
            gaps[step] = 1 - near[pick]
            np.maximum(near, rows[pick], out=near)
            near[pick] = np.inf
    return Spread(order, radius, (1 - nearest.amin(dim=1)).clamp(min=0), similarity)


def farthest_tokens(units: Tensor, preset: Tensor) -> Spread:
    """See `fsr.kernels.farthest_tokens`."""
    if _wants_matrix(units, preset.shape[1]):
        return farthest_points(cosines_of(units), preset)
    with torch.autocast("cpu", enabled=False):
        return Spread(*map(torch.stack, zip(*map(farthest, units, preset))))


def heaviest_points(similarity: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """See `fsr.kernels.heaviest_points`."""
    rows = torch.full((len(similarity), k), -1)
    for b, image in enumerate(similarity):
        _heaviest(image.numpy().__getitem__, weight[b].numpy(), left, rows[b].numpy())
    return Heaviest(rows, similarity)


def heaviest_tokens(units: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """See `fsr.kernels.heaviest_tokens`. Few picks are expected, and each reads one row of the matrix."""
    if _wants_matrix(units, 0):
        return heaviest_points(cosines_of(units), weight, k, left)
    rows = torch.full((len(units), k), -1)
    for b, image in enumerate(units):
        _heaviest(partial(_cosines, _rows(image), len(image)), weight[b].numpy(), left, rows[b].numpy())
    return Heaviest(rows)


def _heaviest(row_of: Callable[[Any], np.ndarray], w: np.ndarray, left: float, picks: np.ndarray) -> None:
    """Fill `picks` from the front."""
    enough = left * w.sum(dtype=np.float64)
    gap = np.ones(len(w), dtype=np.float32)
    for step in range(len(picks)):
        uncovered = w * gap
        if not uncovered.sum(dtype=np.float64) > enough:
            break
        picks[step] = pick = uncovered.argmax()
        np.minimum(gap, np.clip(1 - row_of(pick), 0, 1), out=gap)
        gap[pick] = 0


def dpp_map(similarity: Tensor, quality: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.dpp_map`."""
    order = torch.empty(similarity.shape[0], k, dtype=torch.long)
    for b in range(similarity.shape[0]):
        rows = similarity[b].numpy()
        order[b] = torch.from_numpy(_dpp_map(rows.__getitem__, rows.diagonal(), quality[b].double().numpy(), k))
    return order


def dpp_tokens(units: Tensor, quality: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.dpp_tokens`. Of all rows of the matrix a loop reads only those of its picks."""
    if _wants_matrix(units, k):
        return dpp_map(cosines_of(units), quality, k)
    order = torch.empty(units.shape[0], k, dtype=torch.long)
    for b, image in enumerate(units):
        own = settle((image * image).sum(dim=1)).numpy()
        rows = partial(_cosines, _rows(image), len(image))
        order[b] = torch.from_numpy(_dpp_map(rows, own, quality[b].double().numpy(), k))
    return order


def _rows(image: Tensor) -> Tensor:
    """Directions [N, D], and zero rows up to a multiple of what keeps equal tokens equal (see `lazy`)."""
    return aligned(torch.from_numpy(padded(image)))


def _cosines(units: Tensor, n: int, token: int) -> np.ndarray:
    """Cosines of one token to the first N, by torch: for products of this size numpy's BLAS would wake threads of its
    own, which then fight with those of torch for the cores."""
    with torch.autocast("cpu", enabled=False):
        return settle(torch.mv(units, units[token])[:n]).numpy()


def _wants_matrix(units: Tensor, k: int) -> bool:
    """Whether the whole matrix of cosines is cheap, or most of it needed."""
    _, n, d = units.shape
    return n * n * d <= _SMALL or 2 * k >= n


def _dpp_map(row_of: Callable[[Any], np.ndarray], own: np.ndarray, q: np.ndarray, k: int) -> np.ndarray:
    n = len(q)
    variance = q * q * own
    floor = EXHAUSTED * variance.max()
    factor = np.empty((k, n))
    column = np.empty(n)
    gain = np.empty(n, dtype=np.float32)
    order = np.empty(k, dtype=np.int64)
    for step in range(k):
        np.copyto(gain, variance, casting="same_kind")
        pick = gain.argmax()
        pivot = variance[pick]
        if not pivot > floor:
            free = np.setdiff1d(np.arange(n), order[:step])
            order[step:] = free[: k - step]
            break
        order[step] = pick
        new = factor[step]
        np.multiply(row_of(pick), q, out=new)
        new *= q[pick]
        if step:
            np.dot(factor[:step, pick], factor[:step], out=column)
            new -= column
        new *= 1 / np.sqrt(pivot)
        np.multiply(new, new, out=column)
        variance -= column
        variance[pick] = -np.inf
    return order


def coverage(similarity: Tensor, weight: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.coverage`."""
    order = torch.empty(similarity.shape[0], k, dtype=torch.long)
    for b in range(similarity.shape[0]):
        order[b] = torch.from_numpy(_coverage(similarity[b].numpy(), weight[b].double().numpy(), k))
    return order


def _coverage(rows: np.ndarray, w: np.ndarray, k: int) -> np.ndarray:
    """Lazy greedy (Minoux 1978): a gain can only fall, so a fresh gain that beats all stale ones is the largest."""
    best = np.zeros(len(w), dtype=rows.dtype)
    bound = np.full(len(w), np.inf, dtype=np.float32)
    fresh = np.full(len(w), -1)
    order = np.empty(k, dtype=np.int64)

    def gains(chosen: np.ndarray | slice) -> np.ndarray:
        return w[chosen] * np.maximum(rows[chosen] - best, 0).sum(axis=1, dtype=np.float64)

    for step in range(k):
        if step == 0:
            bound[:] = gains(slice(None))
            fresh[:] = 0
        while fresh[pick := bound.argmax()] != step:
            # The best few in one go: most of them would be asked for next.
            stale = np.argpartition(bound, -_AT_ONCE)[-_AT_ONCE:] if len(bound) > _AT_ONCE else np.arange(len(bound))
            stale = stale[(fresh[stale] != step) & (bound[stale] >= 0)]
            stale = np.union1d(stale, pick)
            bound[stale] = gains(stale)
            fresh[stale] = step
        order[step] = pick
        np.maximum(best, rows[pick], out=best)
        bound[pick] = -1
    return order


_AT_ONCE = 16
