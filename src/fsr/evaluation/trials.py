"""What is compared: a method with its options and budget, a position policy and the sign of relevance."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from fsr.errors import UsageError
from fsr.methods import Method, available, get
from fsr.prepare import Positions

__all__ = ["BASELINES", "RANDOM_SEEDS", "UNPRUNED", "Trial", "contenders", "trials_of", "unpruned"]

UNPRUNED = "unpruned"
RANDOM_SEEDS = (0, 1, 2)
# Short name -> method.
BASELINES = {
    "random": "random",
    "grid": "uniform-grid",
    "pool": "average-pool",
    "saliency": "saliency",
    "relevance": "relevance",
    "farthest": "farthest",
}


@dataclass(frozen=True)
class Trial:
    """One run over the question set.

    label: the contender's name in tables. method: with its budget. positions: see `prepare`.
    sign: -1 turns relevance around.
    redraw: another seed for every batch of pictures (random tokens: one draw for all would measure that draw).
    """

    label: str
    method: Method
    positions: Positions = "auto"
    sign: int = 1
    redraw: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the answers, as plain values."""
        return {
            "method": self.method.name,
            "options": asdict(self.method),
            "positions": self.positions,
            "sign": self.sign,
            "redraw": self.redraw,
        }

    @property
    def key(self) -> str:
        """A short hash of `settings`."""
        text = json.dumps(self.settings, sort_keys=True)
        return f"{self.method.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def method_for(self, batch: int) -> Method:
        """The method for one batch of pictures."""
        if not self.redraw:
            return self.method
        return replace(self.method, seed=self.method.seed * 1_000_003 + batch)  # type: ignore[attr-defined, call-arg]


def unpruned(positions: Positions = "auto") -> Trial:
    """All tokens, on the same path as everything else."""
    return Trial(UNPRUNED, get("uniform-grid", keep=1.0), positions)


def contenders(names: str) -> list[str]:
    """Names separated by commas, FSR first; "all" is FSR, the baselines and every method that prunes before the LLM.

    Raises:
        UsageError: an unknown name, or a method that prunes inside the language model.
    """
    known = available()
    outside = [n for n, cls in known.items() if not cls.where.startswith("inside")]
    if names.strip() == "all":
        found = [*BASELINES, *(n for n in outside if n not in BASELINES.values())]
    else:
        found = list(dict.fromkeys(part.strip().lower() for part in names.split(",") if part.strip()))
    for name in found:
        if name in known and name not in outside:
            raise UsageError(f"{name} prunes inside the language model: compare runs methods that prune before it.")
        if name not in known and name not in BASELINES:
            valid = sorted({*outside, *BASELINES})
            raise UsageError(f"unknown method {name!r}: choose from {', '.join(valid)}.")
    return ["fsr", *(n for n in found if n != "fsr")]


def trials_of(name: str, keep: int | float, positions: Positions = "auto") -> list[Trial]:
    """The runs of one contender at one budget: one, or one per seed where tokens are drawn at random."""
    method = BASELINES.get(name, name)
    if method != "random":
        return [Trial(name, get(method, keep=keep), positions)]
    return [Trial(name, get(method, keep=keep, seed=seed), positions, redraw=True) for seed in RANDOM_SEEDS]
