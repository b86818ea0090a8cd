"""Farthest points straight from directions on CPU, without the matrix of cosines.

That matrix is most of the price of Scan, and most of it never decides anything. Here a step compares the newest anchor
only with the *open* tokens, the farthest ones. A token that is not open can only have come nearer since it was looked
at last: while some open token is farther than all the others were then, it is the farthest of all. Where that fails,
the others are brought up to date. As anchors add up, fewer and fewer tokens stay open.

Every cosine is one entry of one matrix-by-vector product, whose bits do not depend on which tokens are open as long as
the number of rows is a multiple of `LANES`: BLAS adds up leftover rows in another order. (Measured for OpenBLAS. Where
it were otherwise, near ties could fall differently.) Preset anchors, many at once, are one matrix product instead.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from fsr.kernels.similarity import DUPLICATE, settle

__all__ = ["LANES", "farthest", "first_cosines", "padded", "row"]

LANES = 16
# Preset anchors from which on one matrix product beats row by row.
_MANY = 8
# Open tokens are copied together, which pays only if at most half of them stay. (Memory beyond twice the features would
# also be handed back to the system and asked for again on every call, which costs more than the arithmetic.)
_WORTH_A_COPY = 0.5
# Too few open tokens double the time (the others must be brought up to date again and again), too many cost little.
_MARGIN = 1.15
_SAME = np.float32(1 - DUPLICATE)


def padded(units: Tensor) -> np.ndarray:
    """[N, D] and zero rows up to a multiple of `LANES`."""
    missing = -len(units) % LANES
    return (torch.nn.functional.pad(units, (0, 0, 0, missing)) if missing else units).numpy()


def row(units: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Cosines of one unit vector [D] to some unit rows [M, D], snapped and bounded like `cosine`."""
    out = np.dot(units, vector)
    out[out > _SAME] = 1
    return np.maximum(out, -1, out=out)


def first_cosines(units: np.ndarray, preset: np.ndarray) -> np.ndarray:
    """Cosines [F, M] of the preset anchors to all rows."""
    if len(preset) >= _MANY:
        every = torch.from_numpy(units)
        return settle(every[torch.from_numpy(preset)] @ every.T).numpy()
    return np.stack([row(units, units[token]) for token in preset]) if len(preset) else np.empty((0, len(units)))


def farthest(directions: Tensor, preset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Farthest points in one image.

    Args:
        directions: float32 [N, D]; preset: long [K], K < N, as in `fsr.kernels.farthest_points`.

    Returns:
        order [K], radius [K], rest [], as in `Spread`.
    """
    units = padded(directions)
    order, radius = preset.clone(), torch.full(preset.shape, torch.nan)
    picks, gaps = order.numpy(), radius.numpy()
    fixed = picks[picks >= 0]
    near = np.full(len(units), -1, dtype=np.float32)
    np.maximum.reduce(first_cosines(units, fixed), axis=0, initial=-1, out=near)
    near[fixed] = near[len(directions) :] = np.inf

    state = _Open(units, near, _sizes(len(units), len(picks)))
    for step in range(len(fixed), len(picks)):
        state.narrow(step)
        place, value = state.farthest(picks[:step])
        picks[step], gaps[step] = state.tokens[place], 1 - value
        state.take(place)
    _, value = state.farthest(picks)
    return order, radius, torch.tensor(np.maximum(1 - value, np.float32(0)))


@functools.lru_cache(maxsize=256)
def _sizes(n: int, k: int) -> tuple[int, ...]:
    """For each of k steps, how many of n tokens should stay open: those that are as far after it as the last pick will
    be, and some more.

    Each pick takes itself away, and its neighbourhood takes the share 1 - 1/g of the others, the same in every step (so
    among random directions): c(step) = g (c(step + 1) + 1), c(k) = 0, and g follows from c(0) = n.
    """
    g = 2.0
    for _ in range(20):
        g = (1 + n * (g - 1) / g) ** (1 / k)
    expected = (g * (g ** (k - step) - 1) / (g - 1) for step in range(k))
    return tuple(int(-(-_MARGIN * c // LANES) * LANES) for c in expected)


class _Open:
    """The open tokens of one image, and what is known about the others.

    Cosines are kept as they come: that those above `_SAME` count as 1 matters only once the farthest token is one of
    them, and then all free tokens are equally far.
    """

    def __init__(self, units: np.ndarray, near: np.ndarray, sizes: tuple[int, ...]) -> None:
        self.all_units, self.all_near, self.sizes = units, near, sizes
        self.caught_up: int | None = None  # picks that all tokens were compared with; None: all of them, all are open
        self._open_all()

    def _open_all(self) -> None:
        self.tokens, self.units, self.near = np.arange(len(self.all_near)), self.all_units, self.all_near
        # The least `near` among the others, and the lowest token that has it.
        self.edge, self.first_at_edge = np.inf, len(self.all_near)
        self.caught_up = None
        self._resized()

    def _resized(self) -> None:
        self.few = _WORTH_A_COPY * len(self.tokens)
        self.cosines = np.empty(len(self.tokens), dtype=np.float32)

    def take(self, place: int) -> None:
        """Add an anchor."""
        np.dot(self.units, self.units[place], out=self.cosines)
        np.maximum(self.near, self.cosines, out=self.near)
        self.near[place] = np.inf

    def farthest(self, picks: np.ndarray) -> tuple[int, np.float32]:
        """Place among the open tokens of the farthest one of all, ties to the lowest index, and its `near`."""
        place = int(self.near.argmin())
        value = self.near[place]
        if value <= _SAME and (value < self.edge or (value == self.edge and self.tokens[place] < self.first_at_edge)):
            return place, value
        if self.caught_up is not None:
            self.all_near[self.tokens] = self.near
            for pick in picks[self.caught_up :]:
                np.maximum(self.all_near, np.dot(self.all_units, self.all_units[pick]), out=self.all_near)
            self.all_near[picks] = np.inf
            self._open_all()
            place = int(self.near.argmin())
            value = self.near[place]
        if value > _SAME and value < np.inf:
            return int((self.near < np.inf).argmax()), np.float32(1)
        return place, value

    def narrow(self, step: int) -> None:
        """Close the nearest tokens, if few enough of them are expected to be picked in the steps that are left."""
        size = self.sizes[step]
        if size > self.few:
            return
        part = np.partition(self.near, (size - 1, size))
        below, tied = np.flatnonzero(self.near < part[size - 1]), np.flatnonzero(self.near == part[size - 1])
        stay = np.sort(np.concatenate([below, tied[: size - len(below)]]))
        edge = part[size]
        first = self.tokens[tied[size - len(below)]] if edge == part[size - 1] else 0
        if edge != part[size - 1]:
            first = self.tokens[np.flatnonzero(self.near == edge)[0]]
        if (edge, first) < (self.edge, self.first_at_edge):
            self.edge, self.first_at_edge = edge, first
        if self.caught_up is None:
            self.caught_up = step
        else:
            self.all_near[self.tokens] = self.near
        self.tokens, self.near = self.tokens[stay], self.near[stay]
        self.units = self.units.take(stay, axis=0, mode="clip")
        self._resized()
