"""Signals as poor as real ones: the relevance and the saliency of an encoded picture, made worse on purpose.

The embedded model's relevance is perfect (its best patch lies on the asked object), which no CLIP's is; its saliency is
poor, where that of large towers marks objects well and has a few outliers on plain ground. A method should be judged
over the plane of both.

Relevance: smooth noise (the mean of normal noise over 3 x 3 tokens, scaled to unit variance) times so many standard
deviations of the map is added, drawn per picture and question from a fixed seed. Levels are named by the share of
questions, in percent, whose best token still lies on an asked object in `mini`; 'chance' is the noise alone. What a
level leaves in another model is measured and printed.
Saliency: 'tower' is what the model gives, 'object' is 1 on every object and the sign, 0 elsewhere, with noise (what
large towers come close to), 'sinks' is the tower's with three random ground tokens at three times its maximum.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsr.errors import UsageError
from fsr.tokens import Geometry

__all__ = [
    "CLEAN",
    "RELEVANCE",
    "SALIENCY",
    "SALIENCY_SIGNALS",
    "Quality",
    "plane",
    "poorer_relevance",
    "poorer_saliency",
    "smooth_noise",
]

# Name -> standard deviations of noise.
RELEVANCE = {"100": 0.0, "97": 1.0, "66": 2.0, "32": 4.0, "chance": math.inf}
SALIENCY = ("tower", "object", "sinks")
# All that is read off the tower's attention gets worse together: no method has a better eye than another.
SALIENCY_SIGNALS = ("saliency", "shallow_saliency", "first_saliency", "last_saliency")
_OBJECT_NOISE = 0.3  # standard deviation, where an object is 1
_SINKS, _SINK_HEIGHT = 3, 3.0


@dataclass(frozen=True)
class Quality:
    """How good the signals are: a level of `RELEVANCE`, a kind of `SALIENCY`.

    Raises:
        UsageError: an unknown one.
    """

    relevance: str = "100"
    saliency: str = "tower"

    def __post_init__(self) -> None:
        for what, value, known in (("relevance", self.relevance, RELEVANCE), ("saliency", self.saliency, SALIENCY)):
            if value not in known:
                raise UsageError(f"unknown quality of {what} {value!r}: use {', '.join(known)}.")

    def seen_by(self, signals: frozenset[str]) -> Quality:
        """The same as far as a method that reads these signals can tell: equal ones need not be run twice."""
        return Quality(
            self.relevance if "relevance" in signals else CLEAN.relevance,
            self.saliency if signals.intersection(SALIENCY_SIGNALS) else CLEAN.saliency,
        )


CLEAN = Quality()


def plane() -> list[Quality]:
    """Every relevance with every saliency, the clean signals first."""
    return [Quality(r, s) for s in SALIENCY for r in RELEVANCE]


def _rng(*names: object) -> np.random.Generator:
    digest = hashlib.sha256("|".join(map(str, names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def smooth_noise(geometry: Geometry, *seed: object) -> Tensor:
    """Normal noise, averaged over each token and its neighbours in the picture, of unit variance: float32 [N]. The same
    names in `seed` give the same noise; structural tokens get none."""
    boxes = geometry.boxes.double().cpu()
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    tile = geometry.tile.cpu()
    # 1.4 and not 1: tiles and merged patches need not share one exact raster.
    near = ((x[:, None] - x).abs() < 1.4 * width) & ((y[:, None] - y).abs() < 1.4 * height)
    near &= tile[:, None] == tile
    count = near.sum(dim=1)
    raw = torch.from_numpy(_rng("relevance", *seed).standard_normal(len(x)))
    return (torch.where(near, raw, 0.0).sum(dim=1) / count.clamp_min(1).sqrt()).float()


def poorer_relevance(scores: Tensor, geometry: Geometry, level: str, *seed: object) -> Tensor:
    """Relevance [N] of a lower level, float32."""
    times = RELEVANCE[level]
    if times == 0:
        return scores
    noise = smooth_noise(geometry, *seed).to(scores.device)
    if math.isinf(times):
        return noise
    return scores.float() + times * scores.float().std(correction=0) * noise


def poorer_saliency(scores: Tensor, owner: Tensor, kind: str, *seed: object) -> Tensor:
    """Saliency [N] of another kind, float32. owner: long [N], the object on each token, -1 for the ground."""
    if kind == "tower":
        return scores
    rng = _rng("saliency", kind, *seed)
    if kind == "object":
        noise = torch.from_numpy(rng.standard_normal(len(scores))).float().to(scores.device)
        return ((owner != -1).float() + _OBJECT_NOISE * noise).clamp_min(0)
    ground = (owner == -1).nonzero().squeeze(-1).cpu().numpy()
    chosen: Sequence[int] = rng.permutation(ground)[:_SINKS].tolist()
    out = scores.float().clone()
    out[torch.tensor(chosen, dtype=torch.long, device=out.device)] = _SINK_HEIGHT * out.max()
    return out
