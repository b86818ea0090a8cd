"""`fsr compare --plane`: contenders over the whole plane of signal qualities (see `qualities`), and what follows.

A method that does not read a signal is run once for all its levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fsr.evaluation.comparison import about
from fsr.evaluation.plane_verdict import Plane, verdict
from fsr.evaluation.qualities import RELEVANCE, SALIENCY, plane
from fsr.evaluation.runner import Runner
from fsr.evaluation.score import Scorer
from fsr.evaluation.trials import Trial, trials_of, unpruned
from fsr.pipeline.prepare import Positions

__all__ = ["compare_plane", "plane_of"]


def compare_plane(
    runner: Runner,
    names: Sequence[str],
    keeps: Sequence[int | float],
    positions: Positions = "auto",
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every contender at every budget with every quality of its signals.

    names: contenders, "fsr" among them. told: is given a line after each contender and budget.
    """
    started = perf_counter()
    qualities = plane()
    groups = {
        (name, keep, quality): trials_of(name, keep, positions, quality)
        for keep in keeps
        for name in names
        for quality in qualities
    }
    everything = [trial for trials in groups.values() for trial in trials]
    runner.encode(everything)
    (full,) = runner.run([unpruned(positions)])
    scorer = Scorer(runner.questions, full)
    blind = scorer.right(runner.without_picture())
    right: dict[str, str] = {}
    tokens: dict[str, float] = {}
    for trial in {t.key: t for t in everything}.values():
        if trial.key not in right:
            (outcomes,) = runner.run([trial])
            right[trial.key] = "".join("01"[int(v)] for v in scorer.right(outcomes))
            tokens[trial.key] = float(np.mean([o.kept for o in outcomes]))
            told(f"{trial.label} {trial.method.keep} {trial.seen.relevance} {trial.seen.saliency}")
    runs = [
        {
            "method": name,
            "keep": keep,
            **asdict(quality),
            "other_budget": trials[0].other_budget,
            "tokens": tokens[trials[0].key],
            "runs": [t.key for t in trials],
            "accuracy": float(np.mean([_bits(right[t.key]).mean() for t in trials])),
        }
        for (name, keep, quality), trials in groups.items()
    ]
    result = {
        **about(runner),
        "seconds": round(perf_counter() - started, 1),
        "positions": positions,
        "source": runner.source,
        "relevance": list(RELEVANCE),
        "saliency": list(SALIENCY),
        "pointing": pointing(runner, everything),
        "solved_kinds": scorer.solved,
        "unpruned": scorer.summary([full]),
        "text_alone": float(blind.mean()),
        "settings": {t.key: t.settings for t in everything},
        "right": right,
        "pictures": scorer.scene.tolist(),
        "results": runs,
    }
    return {**result, "verdict": verdict(plane_of(result))}


def _bits(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8) == ord("1")


def plane_of(result: dict[str, Any]) -> Plane:
    """The arrays behind a result of `compare_plane`."""
    right = {
        (r["method"], r["keep"], r["relevance"], r["saliency"]): np.stack(
            [_bits(result["right"][k]) for k in r["runs"]]
        )
        for r in result["results"]
    }
    apart = {r["method"] for r in result["results"] if r["other_budget"]}
    return Plane(right, np.array(result["pictures"]), frozenset(apart))


@torch.no_grad()
def pointing(runner: Runner, trials: Sequence[Trial]) -> dict[str, float | None]:
    """Per level: the share of questions whose most relevant token lies on an asked object; None without relevance."""
    if not any("relevance" in trial.reads for trial in trials):
        return dict.fromkeys(RELEVANCE)
    return {level: runner.points(level) for level in RELEVANCE}
