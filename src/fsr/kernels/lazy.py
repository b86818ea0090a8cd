"""Farthest points straight from directions on CPU, without the matrix of cosines.

The matrix takes most of the time of Scan, and most of it never decides anything. Here a step compares the newest anchor
only with the *open* tokens, the farthest ones. A token that is not open can only have come nearer since it was looked
at last: while some open token is farther than all the others were then, it is the farthest of all. Where that fails,
those that were as far then are brought up to date and opened again. As anchors add up, fewer and fewer stay open.

Every cosine is one entry of one matrix-by-vector product, whose bits do not depend on which tokens are open as long as
the number of rows is a multiple of `LANES`: BLAS adds up leftover rows in another order. (Measured for OpenBLAS. Where
it were otherwise, near ties could fall differently.) Preset anchors, many at once, are one matrix product instead.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import torch
from torch import Tensor

from fsr.kernels.similarity import DUPLICATE, settle

__all__ = ["LANES", "farthest", "first_cosines", "padded", "row"]

LANES = 16
# Preset anchors from which on one matrix product beats row by row.
_MANY = 8
# Open tokens are copied together, which saves time only if at most this share of them stay.
_WORTH_A_COPY = 0.6
# Too few open tokens must be opened again and again, too many are compared in vain.
_MARGIN = 1.2
_SAME = np.float32(1 - DUPLICATE)
_kept = threading.local()


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
        self.turn = 0
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
        while True:
            place = int(self.near.argmin())
            value = self.near[place]
            if value <= _SAME and (
                value < self.edge or (value == self.edge and self.tokens[place] < self.first_at_edge)
            ):
                return place, value
            if self.caught_up is None:
                break
            self._reopen(value, picks)
        if value > _SAME and value < np.inf:
            return int((self.near < np.inf).argmax()), np.float32(1)
        return place, value

    def _reopen(self, value: np.float32, picks: np.ndarray) -> None:
        """Open those that may be farther than `value` (they were at least as far when they were looked at last), and as
        many more as are open already, lest it happen again at once."""
        self.all_near[self.tokens] = self.near
        closed = np.ones(len(self.all_near), dtype=bool)
        closed[self.tokens] = False
        shut = np.flatnonzero(closed)
        stale = self.all_near[shut]
        some = max(len(self.tokens), int((stale <= value).sum()))
        some += -some % LANES
        if value > _SAME or some >= len(shut):
            self._catch_up(shut, picks)
            self._open_all()
            return
        part = np.argpartition(stale, some)
        again, rest = shut[part[:some]], part[some:]
        self._catch_up(again, picks)
        self.edge = stale[rest].min()
        self.first_at_edge = shut[rest[stale[rest] == self.edge].min()]
        self.tokens = np.sort(np.concatenate([self.tokens, again]))
        self.near = self.all_near[self.tokens]
        self._copy(self.all_units, self.tokens)
        self._resized()

    def _catch_up(self, tokens: np.ndarray, picks: np.ndarray) -> None:
        """Compare closed tokens, a multiple of `LANES`, with what was picked since the first of them was closed."""
        units, near = self.all_units.take(tokens, axis=0, mode="clip"), self.all_near[tokens]
        for pick in picks[self.caught_up :]:
            np.maximum(near, np.dot(units, self.all_units[pick]), out=near)
        self.all_near[tokens] = near
        self.all_near[picks] = np.inf

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
        self._copy(self.units, stay)
        self._resized()

    def _copy(self, units: np.ndarray, rows: np.ndarray) -> None:
        """Put some rows together, in memory that this thread keeps for it: what is asked of the system anew in every
        call costs more than the arithmetic. Two places take turns, since one may hold `units`."""
        self.turn = 1 - self.turn
        places = _kept.__dict__.setdefault("places", [np.empty(0, np.float32)] * 2)
        if places[self.turn].size < len(rows) * units.shape[1]:
            places[self.turn] = np.empty(len(rows) * units.shape[1], np.float32)
        out = places[self.turn][: len(rows) * units.shape[1]].reshape(len(rows), -1)
        self.units = units.take(rows, axis=0, mode="clip", out=out)
