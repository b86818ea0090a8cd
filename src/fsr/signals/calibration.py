"""What pictures with known places say about a model's relevance: weights of the first layer's heads, and signs.

The measure is the pointing game: in how many pictures the best token lies where the text says. N tokens, H heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsr.errors import RelevanceError, UsageError
from fsr.signals.embedding import EmbeddingRelevance, Words
from fsr.signals.first_layer import FirstLayerRelevance, weighted_heads
from fsr.signals.relevance import RelevanceScorer

__all__ = [
    "BESIDE",
    "FEWEST",
    "HeadFit",
    "RelevanceCalibration",
    "SignCalibration",
    "calibrate_sign",
    "calibration_beside",
    "fit_heads",
    "load_calibration",
    "pointing",
]

FORMAT = "fsr relevance 1"
# Its name beside a model's weights, where relevance="auto" finds it.
BESIDE = "relevance.json"
# Shorter lists would tell a coin's luck from a signal only by accident.
FEWEST = 20
FOLDS = 4
RIDGES = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class RelevanceCalibration:
    """The result of `fsr calibrate`, which `relevance=` takes as a file.

    relevance: the source that pointed best, "first-layer" or "embedding".
    weights: one per head of the first layer, None for equal ones. embedding_sign, embedding_words: see
        `EmbeddingRelevance`.
    pointing: share of held-out pictures in which the best token lies in the right place, by source; "chance" is the
        mean share of tokens that lie there.
    model: its name, for the reader; pictures: how many questions were asked.
    """

    relevance: str
    weights: tuple[float, ...] | None
    embedding_sign: int
    pointing: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    pictures: int = 0
    embedding_words: Words = "mean"

    def scorer(self, model: Any) -> FirstLayerRelevance | EmbeddingRelevance:
        """The scorer for a model."""
        if self.relevance == "embedding":
            return EmbeddingRelevance(
                model.get_input_embeddings(), sign=self.embedding_sign, words=self.embedding_words
            )
        return FirstLayerRelevance(model, self.weights)

    @property
    def best(self) -> str:
        """The chosen source by its name in reports."""
        if self.relevance == "embedding":
            return EmbeddingRelevance(None, sign=self.embedding_sign, words=self.embedding_words).source
        return FirstLayerRelevance(None, self.weights).source

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")


def load_calibration(path: str | PathLike[str]) -> RelevanceCalibration:
    """Read a file of `fsr calibrate`.

    Raises:
        UsageError: no such file. RelevanceError: another kind of file, or values out of range.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; `fsr calibrate --out {path}` writes it.") from error
    except ValueError as error:
        raise RelevanceError(f"{path} is no JSON file of `fsr calibrate`: {error}.") from error
    try:
        if data.pop("format") != FORMAT or data["relevance"] not in ("first-layer", "embedding"):
            raise ValueError("format")
        weights = data.pop("weights")
        found = RelevanceCalibration(weights=None if weights is None else tuple(map(float, weights)), **data)
        EmbeddingRelevance(None, sign=found.embedding_sign, words=found.embedding_words)
        if found.weights is not None:
            weighted_heads(torch.zeros(len(found.weights), 1), found.weights)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RelevanceError(f"{path} is not a file that `fsr calibrate` wrote: {error}.") from error
    return found


def calibration_beside(folder: str) -> RelevanceCalibration | None:
    """The file `relevance.json` of `fsr calibrate` in a model's folder, None where there is no such folder or file.

    Raises:
        RelevanceError: a file of that name that `fsr calibrate` did not write.
    """
    file = Path(folder) / BESIDE
    return load_calibration(file) if folder and file.is_file() else None


def pointing(scores: Sequence[Tensor], inside: Sequence[Tensor]) -> float:
    """Share of pictures whose highest score [N] lies where `inside` (bool [N]) says."""
    return sum(bool(i[s.argmax()]) for s, i in zip(scores, inside)) / len(scores)


@dataclass(frozen=True)
class HeadFit:
    """weights: float [H] with absolute values that sum to 1, or None where equal weights point as well.

    equal, fitted: pointing of equal weights, and of fitted ones on pictures that they were not fitted on.
    """

    weights: tuple[float, ...] | None
    equal: float
    fitted: float


def fit_heads(rows: Sequence[Tensor], inside: Sequence[Tensor]) -> HeadFit:
    """Weights of heads by ridge regression of "lies in the right place" on the heads' scores, per picture centred.

    rows: `head_scores` [H, N_i] of each picture; inside: bool [N_i]. The strength of the ridge is the one that points
    best in four-fold cross-validation; a head that looks away from what is asked for gets a negative weight.

    Raises:
        RelevanceError: fewer than eight pictures, or none that tells places apart.
    """
    told = [bool(i.any()) and not bool(i.all()) for i in inside]
    rows, inside = ([x for x, t in zip(xs, told) if t] for xs in (rows, inside))
    if len(rows) < 2 * FOLDS:
        raise RelevanceError(f"{len(rows)} pictures tell places apart: calibration takes at least {2 * FOLDS}.")
    parts = [_moments(r, i) for r, i in zip(rows, inside)]
    folds = [[i for i in range(len(rows)) if i % FOLDS == f] for f in range(FOLDS)]
    equal = pointing([weighted_heads(r) for r in rows], inside)
    best, strength = -1.0, RIDGES[0]
    for ridge in RIDGES:
        hits = 0.0
        for fold in folds:
            held = set(fold)
            weights = _ridge([p for i, p in enumerate(parts) if i not in held], ridge)
            hits += len(fold) * pointing([weights @ rows[i].double() for i in fold], [inside[i] for i in fold])
        if hits / len(rows) > best:
            best, strength = hits / len(rows), ridge
    if best <= equal:
        return HeadFit(None, equal, best)
    return HeadFit(tuple(round(float(w), 6) for w in _ridge(parts, strength)), equal, best)


def _moments(rows: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance [H, H] of the heads over one picture's tokens, and with the place [H]. Pictures count alike."""
    x = rows.double() * rows.shape[1] ** 0.5  # rows have norm 1: values do not shrink with N
    x = x - x.mean(1, keepdim=True)
    y = inside.double() - inside.double().mean()
    return x @ x.T / len(y), x @ y / len(y)


def _ridge(parts: Sequence[tuple[Tensor, Tensor]], ridge: float) -> Tensor:
    covariance = torch.stack([c for c, _ in parts]).mean(0)
    place = torch.stack([p for _, p in parts]).mean(0)
    floor = ridge * covariance.diagonal().mean().clamp_min(1e-12)
    weights = torch.linalg.solve(covariance + floor * torch.eye(len(place), dtype=torch.float64), place)
    return weights / weights.abs().sum().clamp_min(1e-12)


# ------------------------------------------------------------------------------------------------ sign of a text tower


@dataclass(frozen=True)
class SignCalibration:
    """Pointing game: how often the best patch lies in the box that the text names, as is and negated."""

    sign: int
    hits_positive: int
    hits_negative: int
    count: int


def calibrate_sign(
    scorer: RelevanceScorer, samples: Iterable[tuple[Tensor, Tensor, tuple[float, float, float, float], str]]
) -> SignCalibration:
    """The sign of a text tower from pictures whose object is known, by the pointing game.

    samples: (patches [N, C], patch boxes [N, 4], box of the object (x0, y0, x1, y1) in the same units, text that names
    it). The scorer's own sign is undone first where it has one.

    Raises:
        RelevanceError: no samples, or as many hits with either sign.
    """
    own = int(getattr(scorer, "sign", 1))
    hits = {1: 0, -1: 0}
    count = 0
    for patches, boxes, (x0, y0, x1, y1), text in samples:
        count += 1
        score = own * scorer(patches, text)
        for sign in hits:
            box = boxes[int(torch.argmax(sign * score))]
            x, y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
            hits[sign] += int(x0 <= x <= x1 and y0 <= y <= y1)
    if hits[1] == hits[-1]:
        raise RelevanceError(f"{hits[1]} hits of {count} with either sign: give more samples, or another text tower.")
    return SignCalibration(1 if hits[1] > hits[-1] else -1, hits[1], hits[-1], count)
