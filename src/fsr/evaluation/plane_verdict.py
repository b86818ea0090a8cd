"""What the plane says: means over it, who beats FSR where, and by how much FSR is ahead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fsr.evaluation.qualities import CLEAN
from fsr.evaluation.statistics import interval, mcnemar

__all__ = ["Plane", "sign_flips", "verdict"]

# A method beats another where the exact McNemar p of a cell lies below this.
LEVEL = 0.01
_FLIPS = 20_000

Cell = tuple[str, str]
Budget = int | float


@dataclass(frozen=True)
class Plane:
    """Answers over the plane.

    right: bool [S, n] per (method, budget, relevance, saliency): S seeds, n questions. pictures: long [n], of each
    question. apart: contenders whose budget is another one (inside the language model, or before the tower).
    """

    right: dict[tuple[str, Budget, str, str], np.ndarray]
    pictures: np.ndarray
    apart: frozenset[str] = frozenset()

    @cached_property
    def methods(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(name for name, *_ in self.right))

    @cached_property
    def keeps(self) -> list[Budget]:
        """Budgets in order of appearance."""
        return list(dict.fromkeys(keep for _, keep, _, _ in self.right))

    @cached_property
    def cells(self) -> list[Cell]:
        """(relevance, saliency) in order of appearance."""
        return list(dict.fromkeys((r, s) for *_, r, s in self.right))

    @cached_property
    def rivals(self) -> list[str]:
        """Everything that prunes before the language model but FSR itself."""
        return [m for m in self.methods if m != "fsr" and m not in self.apart]

    def each(self, method: str, keeps: list[Budget] | None = None, cells: list[Cell] | None = None) -> np.ndarray:
        """Per question the share of right answers over budgets and cells (all, unless given) and seeds: [n]."""
        keys = [(method, k, *cell) for k in keeps or self.keeps for cell in cells or self.cells]
        return np.mean([self.right[key].mean(axis=0) for key in keys], axis=0)

    def mean(self, method: str, keeps: list[Budget] | None = None, cells: list[Cell] | None = None) -> float:
        """The mean of `each`."""
        return float(self.each(method, keeps, cells).mean())


def verdict(plane: Plane) -> dict[str, Any]:
    """Means, the cells where a method before the language model beats FSR, and FSR's lead over the best of them."""
    clean = [(CLEAN.relevance, CLEAN.saliency)]
    means = {
        m: {
            "all": plane.mean(m),
            "by_keep": {str(k): plane.mean(m, [k]) for k in plane.keeps},
            "clean_by_keep": {str(k): plane.mean(m, [k], clean) for k in plane.keeps},
        }
        for m in plane.methods
    }
    out: dict[str, Any] = {"means": means}
    if not plane.rivals:
        return out
    beaten = [
        found for m in plane.rivals for k in plane.keeps for c in plane.cells if (found := _beats(plane, m, k, c))
    ]
    best = max(plane.rivals, key=plane.mean)
    lead = plane.each("fsr") - plane.each(best)
    pairs = {
        m: {str(k): _paired_mean(plane, m, [k]) for k in plane.keeps} | {"all": _paired_mean(plane, m, plane.keeps)}
        for m in plane.rivals
    }
    return {
        **out,
        "cells": len(plane.cells) * len(plane.keeps),
        "beaten": beaten,
        "best_other": best,
        "lead": asdict(interval(lead, plane.pictures)),
        "fsr_minus": pairs,
    }


def _beats(plane: Plane, method: str, keep: Budget, cell: Cell) -> dict[str, Any] | None:
    """Where a method beats FSR in a cell (every seed of it), else None."""
    base = plane.right[("fsr", keep, *cell)][0]
    ps, net = [], []
    for run in plane.right[(method, keep, *cell)]:
        gains, losses = int((run & ~base).sum()), int((base & ~run).sum())
        ps.append(mcnemar(gains, losses))
        net.append((gains - losses) / len(base))
    if max(ps) >= LEVEL or min(net) <= 0:
        return None
    relevance, saliency = cell
    return {
        "method": method,
        "keep": keep,
        "relevance": relevance,
        "saliency": saliency,
        "by": float(np.mean(net)),
        "p": max(ps),
    }


def _paired_mean(plane: Plane, method: str, keeps: list[Budget]) -> dict[str, float]:
    """FSR minus a method in the mean over the plane: difference, its interval over pictures, and p."""
    difference = plane.each("fsr", keeps) - plane.each(method, keeps)
    return {**asdict(interval(difference, plane.pictures)), "p": sign_flips(difference, plane.pictures)}


def sign_flips(difference: np.ndarray, pictures: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of a mean difference under random signs of whole pictures (a randomisation test; 20,000 draws, so
    never below 1 / 20,001)."""
    _, label = np.unique(pictures, return_inverse=True)
    sums = np.bincount(label, weights=difference)
    signs = np.random.default_rng(seed).integers(0, 2, size=(_FLIPS, len(sums)), dtype=np.int8) * 2 - 1
    drawn = np.abs(signs @ sums)
    return float((1 + (drawn >= abs(sums.sum()) - 1e-9).sum()) / (_FLIPS + 1))
