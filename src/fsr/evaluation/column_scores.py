"""One column of a paper table from one run: the score, and how sure it is.

With logged answers the questions are drawn again (bootstrap, 95 % percentile interval); the same draws are used for
every run, so that a run and its baseline are paired. Without them lmms-eval's standard error is used, else, for means
of values between 0 and 1, the binomial one, which no such mean exceeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsr.errors import UsageError
from fsr.evaluation.benchmarks import COLUMNS, Source
from fsr.evaluation.lmms_results import Run, TaskResult
from fsr.evaluation.statistics import bootstrap_means

__all__ = ["KINDS", "ColumnScore", "column_score"]

Kind = Literal["bootstrap", "stderr", "binomial", "none"]
KINDS: dict[Kind, str] = {
    "bootstrap": "questions drawn again (pictures for MME, clips where named), 95 %",
    "stderr": "1.96 standard errors of lmms-eval (no --log_samples)",
    "binomial": "1.96 binomial standard errors (no --log_samples, none from lmms-eval)",
    "none": "no interval",
}
RESAMPLES = 1000
_CELLS = 10_000_000  # of the matrix of draws that is in memory at a time


@dataclass(frozen=True)
class ColumnScore:
    """value, low, high: in the paper's unit. kind: of the interval. draws: [R] resampled scores, or None."""

    value: float
    low: float
    high: float
    kind: Kind
    source: Source
    draws: np.ndarray | None = None


def column_score(run: Run, column: str) -> ColumnScore | None:
    """The column from its best source that the run has whole; None if it has none.

    Raises:
        UsageError: logged answers that do not give the score of the results.
    """
    for source in COLUMNS[column]:
        if all(task in run.tasks and _has(run.tasks[task], source) for task in source.tasks):
            return _score(run, source, seed=list(COLUMNS).index(column))
    return None


def _has(task: TaskResult, source: Source) -> bool:
    return all(metric in task.metrics for metric in source.metrics)


def _score(run: Run, source: Source, seed: int) -> ColumnScore:
    tasks = [run.tasks[name] for name in source.tasks]
    scores = [source.scale * sum(task.metrics[m] for m in source.metrics) for task in tasks]
    value = sum(scores) / len(scores)
    if source.rule is not None and all(task.samples for task in tasks):
        draws = np.mean([_draws(t, source, s, seed + 100 * i) for i, (t, s) in enumerate(zip(tasks, scores))], axis=0)
        low, high = np.quantile(draws, [0.025, 0.975])
        return ColumnScore(value, float(low), float(high), "bootstrap", source, draws)
    errors, kind = _errors(tasks, scores, source)
    if kind == "none":
        return ColumnScore(value, math.nan, math.nan, kind, source)
    half = 1.96 * math.sqrt(sum(e * e for e in errors)) / len(errors)
    return ColumnScore(value, value - half, value + half, kind, source)


def _draws(task: TaskResult, source: Source, score: float, seed: int) -> np.ndarray:
    """[R] resampled scores of one task."""
    rule, values = source.rule, task.values(source.metrics[0])
    if rule is None or not values:
        raise UsageError(f"{task.samples} has no {source.metrics[0]}: it does not belong to these results.")
    rows, clusters = rule.table(values)
    again = float(rule.score(rows.mean(0, keepdims=True))[0])
    if abs(again - score) > 0.01:
        raise UsageError(
            f"the answers in {task.samples} give {again:.2f}, their results {score:.2f}: give files of one run."
        )
    at_once = max(1, min(RESAMPLES, _CELLS // (int(clusters.max()) + 1)))
    parts = []
    for start in range(0, RESAMPLES, at_once):
        some = min(at_once, RESAMPLES - start)
        parts.append(rule.score(bootstrap_means(rows, clusters, seed=RESAMPLES * seed + start, resamples=some)))
    return np.concatenate(parts)


def _errors(tasks: list[TaskResult], scores: list[float], source: Source) -> tuple[list[float], Kind]:
    """Standard errors in percent, and where they are from."""
    if source.rule is None or not source.rule.share:
        return [], "none"
    metric = source.metrics[0]
    for suffix in ("_stderr", "_stderr_clt"):
        found = [100 * t.metrics[metric + suffix] for t in tasks if metric + suffix in t.metrics]
        if len(found) == len(tasks) and all(math.isfinite(e) for e in found):
            return found, "stderr"
    shares = [min(max(s / 100, 0.0), 1.0) for s in scores]
    return [100 * math.sqrt(p * (1 - p) / max(t.questions, 1)) for p, t in zip(shares, tasks)], "binomial"
