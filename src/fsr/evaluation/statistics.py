"""Paired statistics on right and wrong answers. Questions about one picture are not independent, so intervals resample
pictures, not questions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fsr.errors import UsageError

__all__ = ["Interval", "Paired", "bootstrap_means", "interval", "mcnemar", "mean_of_ratios", "paired", "ratio_of_means"]

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two methods on the same questions.

    gains: questions that the first answers right and the second wrong; losses: the other way round.
    difference: first minus second, share of questions, with its interval over pictures.
    p: exact McNemar test, two-sided, as if questions were independent.
    """

    gains: int
    losses: int
    difference: Interval
    p: float


def mcnemar(gains: int, losses: int) -> float:
    """Exact two-sided McNemar test: a binomial test with 1/2 on the questions where two methods differ.

    McNemar, Psychometrika 12 (1947); the exact form doubles the smaller binomial tail. 1.0 where nothing differs.
    """
    if gains < 0 or losses < 0:
        raise UsageError(f"gains {gains} and losses {losses}: counts cannot be negative.")
    n = gains + losses
    tail = sum(math.comb(n, k) for k in range(min(gains, losses) + 1))
    # Whole numbers until the last step: 2^-n underflows for n > 1074, the quotient does not.
    return min(1.0, 2 * tail / 2**n)


def bootstrap_means(values: np.ndarray, clusters: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of `values` when whole clusters are drawn with replacement.

    values: [n] or [n, m] (m quantities resampled together); clusters: long [n], any labels. Returns [R] or [R, m].
    """
    values = np.asarray(values, dtype=np.float64)
    _, label = np.unique(clusters, return_inverse=True)
    count = int(label.max()) + 1
    flat = values.reshape(len(values), -1)
    sums = np.stack([np.bincount(label, weights=flat[:, j], minlength=count) for j in range(flat.shape[1])], axis=1)
    sizes = np.bincount(label, minlength=count)
    times = _draws(count, seed, resamples)
    means = (times @ sums) / (times @ sizes)[:, None]
    return means if values.ndim > 1 else means[:, 0]


@lru_cache(maxsize=4)
def _draws(count: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of `count` clusters is drawn in each resample: [R, count]. The same for every method."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def interval(values: np.ndarray, clusters: np.ndarray, seed: int = 0) -> Interval:
    """The mean of `values` [n] and its interval over clusters."""
    means = bootstrap_means(values, clusters, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))


def paired(first: np.ndarray, second: np.ndarray, clusters: np.ndarray, seed: int = 0) -> Paired:
    """Compare two methods. first, second: bool [n], right or wrong on the same questions; clusters: picture of each."""
    if first.shape != second.shape or first.shape != np.shape(clusters):
        raise UsageError("paired answers must belong to the same questions: their numbers differ.")
    gains, losses = int((first & ~second).sum()), int((~first & second).sum())
    difference = interval(first.astype(float) - second.astype(float), clusters, seed)
    return Paired(gains, losses, difference, mcnemar(gains, losses))


def ratio_of_means(pruned: dict[str, float], full: dict[str, float]) -> float:
    """Sum of a method's scores over the sum of the unpruned scores, over the kinds both have (FSR's "Avg.")."""
    kinds = _common(pruned, full)
    return sum(pruned[k] for k in kinds) / sum(full[k] for k in kinds)


def mean_of_ratios(pruned: dict[str, float], full: dict[str, float]) -> float:
    """Mean over kinds of a method's score as a share of the unpruned score (most papers' "Avg.")."""
    kinds = _common(pruned, full)
    return sum(pruned[k] / full[k] for k in kinds) / len(kinds)


def _common(pruned: dict[str, float], full: dict[str, float]) -> list[str]:
    kinds = [k for k in full if k in pruned and full[k] > 0]
    if not kinds:
        raise UsageError("no kind of question that the unpruned model answers at all: there is nothing to share in.")
    return kinds
