"""`fsr compare` without the command line: contenders at several budgets on one question set."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers

from fsr.evaluation.fingerprint import model_hash
from fsr.evaluation.qualities import CLEAN, Quality
from fsr.evaluation.question_set import VERSION
from fsr.evaluation.record import Outcome
from fsr.evaluation.runner import Runner
from fsr.evaluation.score import Scorer
from fsr.evaluation.trials import Trial, trials_of, unpruned
from fsr.pipeline.prepare import Positions
from fsr.version import __version__

__all__ = ["about", "answer_tokens", "compare"]


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
                "answer_tokens": answer_tokens(runner.processor, runs[name, keep]),
                **scorer.summary(runs[name, keep], reference),
            }
        )
    return {
        **about(runner),
        "seconds": round(perf_counter() - started, 1),
        "positions": positions,
        "relevance": runner.source,
        "quality": asdict(quality),
        "solved_kinds": scorer.solved,
        "unpruned": {"answer_tokens": answer_tokens(runner.processor, [full]), **scorer.summary([full])},
        "results": rows,
    }


def answer_tokens(processor: Any, runs: Sequence[Sequence[Outcome]]) -> float:
    """Mean length of the answers in tokens, by the model's own tokenizer and without the end token: where pruning makes
    answers longer, decoding takes longer. (The runner cuts off what is longer than any true answer.)"""
    tokenizer = getattr(processor, "tokenizer", processor)
    answers = Counter(o.answer for run in runs for o in run)
    lengths = {a: len(tokenizer(a, add_special_tokens=False).input_ids) for a in answers}
    return sum(n * lengths[a] for a, n in answers.items()) / answers.total()


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
