"""What is compared: a method with its options and budget, a position policy and the sign of relevance."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from fsr.asking.options import method_labels, method_options
from fsr.errors import UsageError
from fsr.evaluation.in_llm import before
from fsr.evaluation.qualities import CLEAN, Quality
from fsr.methods import Method, available, get
from fsr.methods.registry import unknown_method
from fsr.pipeline.prepare import Positions

__all__ = ["BASELINES", "RANDOM_SEEDS", "SHRUNK", "UNPRUNED", "Trial", "contenders", "trials_of", "unpruned"]

UNPRUNED = "unpruned"
# Nothing is pruned: the picture is shrunk before the tower, see `poor_pictures`.
SHRUNK = "shrunk"
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
    shrunk: no method runs, its budget says how small the picture is made before the tower.
    quality: of the signals. Only what the method reads of it counts, so trials that cannot differ are one.
    """

    label: str
    method: Method
    positions: Positions = "auto"
    sign: int = 1
    redraw: bool = False
    shrunk: bool = False
    quality: Quality = CLEAN

    @property
    def reads(self) -> frozenset[str]:
        """Signals that are read before the language model."""
        return before(self.method).signals()

    @property
    def inside(self) -> bool:
        """Whether tokens are dropped inside the language model."""
        return self.method.where.startswith("inside")

    @property
    def other_budget(self) -> bool:
        """Whether the budget is not K tokens in front of the language model: no rival of those that keep to it."""
        return self.inside or self.shrunk

    @property
    def seen(self) -> Quality:
        """The quality, as far as the method can tell."""
        return self.quality.seen_by(self.reads)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the answers, as plain values."""
        return {
            "method": self.method.name,
            "options": asdict(self.method),
            "positions": self.positions,
            "sign": self.sign,
            "redraw": self.redraw,
            "quality": asdict(self.seen),
            **({"shrunk": True} if self.shrunk else {}),
        }

    @property
    def key(self) -> str:
        """A short hash of `settings`."""
        text = json.dumps(self.settings, sort_keys=True)
        return f"{SHRUNK if self.shrunk else self.method.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def method_for(self, batch: int) -> Method:
        """The method for one batch of pictures."""
        if not self.redraw:
            return self.method
        return replace(self.method, seed=self.method.seed * 1_000_003 + batch)  # type: ignore[attr-defined, call-arg]


def unpruned(positions: Positions = "auto") -> Trial:
    """All tokens, on the same path as everything else."""
    return Trial(UNPRUNED, get("uniform-grid", keep=1.0), positions)


def contenders(names: str) -> list[str]:
    """Names separated by commas, FSR first; "all" is FSR, the baselines and every method, those inside the LLM last.

    A name may carry options: `fsr:max_focus=0.5:rho=0.8`. "all" may stand among other names.

    Raises:
        UsageError: an unknown name.
    """
    known = available()
    order = sorted(known, key=lambda n: known[n].where.startswith("inside"))
    everything = [*BASELINES, SHRUNK, *(n for n in order if n not in BASELINES.values())]
    found = []
    for part in method_labels(names):
        found += everything if part == "all" else [part]
    for label in found:
        name = label.partition(":")[0]
        if name not in known and name not in BASELINES and name != SHRUNK:
            raise unknown_method(label if "|" in label else name, sorted({*known, *BASELINES, SHRUNK}))
    return list(dict.fromkeys(["fsr", *found]))


def trials_of(name: str, keep: int | float, positions: Positions = "auto", quality: Quality = CLEAN) -> list[Trial]:
    """The runs of one contender (see `contenders`) at one budget: one, or one per seed for random tokens.

    Raises:
        UsageError, BudgetError: an option or budget that the method does not take.
    """
    plain, *settings = name.split(":")
    if plain == SHRUNK:
        if settings:
            raise UsageError(f"{name}: {SHRUNK} takes no option, only its budget.")
        return [Trial(SHRUNK, get("uniform-grid", keep=keep), positions, shrunk=True)]
    method, options = BASELINES.get(plain, plain), method_options(settings)
    if method != "random":
        return [Trial(name, get(method, keep=keep, **options), positions, quality=quality)]
    if "seed" in options:
        raise UsageError(f"{name}: random tokens are drawn with the seeds {RANDOM_SEEDS} and averaged: give no seed.")
    return [Trial(name, get(method, keep=keep, **options | {"seed": s}), positions, redraw=True) for s in RANDOM_SEEDS]
