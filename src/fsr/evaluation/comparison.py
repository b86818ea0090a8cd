"""`fsr compare` without the command line: contenders at several budgets on one question set."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers

from fsr.evaluation.qualities import CLEAN, Quality
from fsr.evaluation.question_set import VERSION
from fsr.evaluation.runner import Runner, model_hash
from fsr.evaluation.score import Scorer
from fsr.evaluation.trials import Trial, trials_of, unpruned
from fsr.pipeline.prepare import Positions
from fsr.version import __version__

__all__ = ["about", "compare"]


def compare(
    runner: Runner,
    names: Sequence[str],
    keeps: Sequence[int | float],
    positions: Positions = "auto",
    quality: Quality = CLEAN,
) -> dict[str, Any]:
    """Run everything and score it. The unpruned run comes first: it alone decides which kinds count as solved.

    names: contenders, "fsr" among them (the others are paired with it). keeps: budgets. quality: of the signals.
    """
    started = perf_counter()
    groups: dict[tuple[str, int | float], list[Trial]] = {
        (name, keep): trials_of(name, keep, positions, quality) for keep in keeps for name in names
    }
    everything = [t for trials in groups.values() for t in trials]
    runner.encode(everything)
    (full,) = runner.run([unpruned(positions)])
    scorer = Scorer(runner.questions, full)
    outcomes = iter(runner.run(everything))
    runs = {key: [next(outcomes) for _ in trials] for key, trials in groups.items()}
    rows = []
    for (name, keep), trials in groups.items():
        reference = None if name == "fsr" else runs["fsr", keep][0]
        rows.append(
            {
                "method": name,
                "keep": keep,
                "settings": [t.settings for t in trials],
                **scorer.summary(runs[name, keep], reference),
            }
        )
    return {
        **about(runner),
        "seconds": round(perf_counter() - started, 1),
        "positions": positions,
        "relevance": runner.relevance,
        "source": runner.source,
        "quality": asdict(quality),
        "solved_kinds": scorer.solved,
        "unpruned": scorer.summary([full]),
        "results": rows,
    }


def about(runner: Runner) -> dict[str, Any]:
    """What was run on what: enough to run it again."""
    q = runner.questions
    return {
        "questions": {
            "version": VERSION,
            "scenes": q.world,
            "crowded": q.crowded,
            "split": q.split,
            "seed": q.seed,
            "count": len(q),
            "pictures": len(q.scenes),
            "sha256": q.sha256,
            "note": q.note,
            "majority_by_kind": q.majority(),
        },
        "model": {
            "name": Path(str(getattr(runner.model, "name_or_path", ""))).name,
            "sha256": model_hash(runner.model),
        },
        "versions": {
            "fsr": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": str(runner.model.device),
        "dtype": str(runner.model.dtype),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
