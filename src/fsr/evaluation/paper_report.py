"""The paper's tables as Markdown, with results of lmms-eval beside the printed rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsr.errors import UsageError
from fsr.evaluation.column_scores import KINDS, ColumnScore, column_score
from fsr.evaluation.lmms_results import Run, differing
from fsr.evaluation.published import SMALL, PaperTable, averages, comparable
from fsr.evaluation.statistics import mean_of_ratios, ratio_of_means
from fsr.evaluation.tables import markdown

__all__ = ["report"]

MARKS = {"bootstrap": "b", "stderr": "s", "binomial": "n", "none": ""}
NO_BUDGET = math.inf  # results of a model that is not ours: their tokens are not known, their rows stand last


@dataclass(frozen=True)
class Measured:
    """A run, what it is called, and its columns of one table."""

    run: Run
    label: str
    columns: Mapping[str, ColumnScore]

    @property
    def scores(self) -> dict[str, float]:
        """By column."""
        return {name: column.value for name, column in self.columns.items()}

    def budget(self, unit: str) -> float:
        """In the table's unit: tokens per picture (averaged over the decoder layers), or percent taken away."""
        run = self.run
        if not run.pictures:
            return NO_BUDGET
        return run.kept / run.pictures if unit == "tokens" else 100 * (1 - run.kept / run.total)


def report(paper: PaperTable, runs: Sequence[Run]) -> str:
    """Table `paper`; with runs, theirs beside it, their intervals and what to know about them.

    Raises:
        UsageError: runs of several checkpoints, two unpruned ones, or none with a benchmark of this table.
    """
    shown = differing(runs)
    found = [
        Measured(run, run.label(shown), {c: s for c in paper.columns if (s := column_score(run, c)) is not None})
        for run in runs
    ]
    measured = [m for m in found if m.columns]
    if runs and not measured:
        names = sorted({task for run in runs for task in run.tasks})
        raise UsageError(f"none of {', '.join(names)[:300]} belongs to table {paper.number}: see docs/evaluation.md.")
    checkpoints = sorted({m.run.pretrained for m in measured})
    if len(checkpoints) > 1:
        raise UsageError(f"results of {', '.join(checkpoints)}: one table is about one checkpoint.")
    bases = [m for m in measured if m.run.unpruned]
    if len(bases) > 1:
        raise UsageError("two unpruned runs that differ in their arguments: give one of them.")
    base = bases[0] if bases else None
    parts = [f"## Table {paper.number}: {paper.title}", markdown(_rows(paper, measured, base))]
    if measured:
        parts += ["Here, with intervals:", markdown(_intervals(paper, measured, base))]
        parts.append("\n".join(f"- {line}" for line in _notes(measured, base)))
    return "\n\n".join(parts)


def _names(paper: PaperTable) -> list[str]:
    """Heads of the averages."""
    both = ["rel_sum", "rel_mean"]
    return [*both, *(f"{name} without {SMALL}" for name in both)] if SMALL in paper.columns else both


def _averages(paper: PaperTable, scores: Mapping[str, float], base: Mapping[str, float] | None) -> list[str]:
    """The cells under `_names`, and over how many benchmarks."""
    if base is None:
        return ["-"] * (len(_names(paper)) + 1)
    made = averages(scores, base)
    values = [made.rel_sum, made.rel_mean]
    if SMALL in paper.columns:
        rest = averages(scores, base, leave_out=SMALL)
        values += [rest.rel_sum, rest.rel_mean]
    return [*("-" if v is None else f"{v:.2f}" for v in values), str(made.count)]


def _rows(paper: PaperTable, measured: Sequence[Measured], base: Measured | None) -> list[list[str]]:
    """Printed rows and ours, by budget; averages of ours are shares of our own baseline."""
    unit = "tokens" if paper.unit == "tokens" else "cut, %"
    head = ["method", unit, *paper.columns, *_names(paper), "benchmarks", "printed Avg."]
    falls = -1 if paper.unit == "tokens" else 1
    lines: list[tuple[float, int, list[str]]] = []
    for row in paper.rows:
        cells = [_printed(c, row.scores[c]) if c in row.scores else "-" for c in paper.columns]
        last = "-" if row.printed is None else f"{row.printed:.1f}"
        made = _averages(paper, row.scores, paper.base.scores)
        lines.append((falls * row.budget, 0, [row.method, f"{row.budget:g}", *cells, *made, last]))
    for m in measured:
        budget = m.budget(paper.unit)
        shown = "-" if budget == NO_BUDGET else f"{budget:.1f}"
        cells = [f"**{m.scores[c]:.1f}**" if c in m.columns else "-" for c in paper.columns]
        made = _averages(paper, m.scores, base.scores if base else None)
        order = NO_BUDGET if budget == NO_BUDGET else falls * round(budget)
        lines.append((order, 1, [f"**here: {m.label}**", shown, *cells, *made, ""]))
    return [head, *(line for _, _, line in sorted(lines, key=lambda line: line[:2]))]


def _printed(column: str, value: float) -> str:
    """As in the paper: MME without digits behind the point, where it has none there."""
    return f"{value:g}" if column == "MME" else f"{value:.1f}"


def _intervals(paper: PaperTable, measured: Sequence[Measured], base: Measured | None) -> list[list[str]]:
    head = ["here", *paper.columns, "rel_sum", "rel_mean"]
    rows = [head]
    for m in measured:
        cells = [_cell(m.columns[c]) if c in m.columns else "-" for c in paper.columns]
        rows.append([m.label, *cells, *_relative(m, base)])
    return rows


def _cell(score: ColumnScore) -> str:
    if score.kind == "none":
        return f"{score.value:.1f}"
    return f"{score.value:.1f} ({score.low:.1f} to {score.high:.1f} {MARKS[score.kind]})"


def _relative(m: Measured, base: Measured | None) -> list[str]:
    """Intervals of both averages against the baseline, paired; "-" unless every benchmark has logged answers."""
    if base is None or m is base:
        return ["-", "-"]
    common = [c for c in base.columns if c in m.columns]
    mine, full = {c: m.columns[c].draws for c in common}, {c: base.columns[c].draws for c in common}
    if not common or any(d is None for d in (*mine.values(), *full.values())):
        return ["-", "-"]
    pairs = [
        (
            comparable({c: float(mine[c][r]) for c in common}),  # type: ignore[index]
            comparable({c: float(full[c][r]) for c in common}),  # type: ignore[index]
        )
        for r in range(len(next(iter(mine.values()))))  # type: ignore[arg-type]
    ]
    cells = []
    for average in (ratio_of_means, mean_of_ratios):
        low, high = np.quantile([100 * average(*pair) for pair in pairs], [0.025, 0.975])
        cells.append(f"{low:.2f} to {high:.2f} b")
    return cells


def _notes(measured: Sequence[Measured], base: Measured | None) -> list[str]:
    """What the numbers are made of."""
    lines = []
    for m in measured:
        run = m.run
        line = f"{m.label}: "
        if run.pictures:
            line += f"{run.kept / run.pictures:.1f} of {run.total / run.pictures:.1f} visual tokens per picture"
        else:
            line += "visual tokens not recorded"
        ratios = [t.metrics["pope_yes_ratio"] for name, t in run.tasks.items() if name.startswith("fsr_pope_")]
        if ratios:
            line += f"; POPE answered yes to {100 * sum(ratios) / len(ratios):.1f} %"
        lines.append(line + ("; made with --limit, no score of the whole benchmark" if run.partial else ""))
    kinds = {s.kind for m in measured for s in m.columns.values()}
    lines += [f"{MARKS[kind] or 'no mark'}: {text}" for kind, text in KINDS.items() if kind in kinds]
    sources = {(c, s.source.note) for m in measured for c, s in m.columns.items() if s.source.note}
    lines += [f"{column}: {note}" for column, note in sorted(sources)]
    if base is None:
        lines.append("no unpruned run among the results (method=none): averages need one of your own")
    return lines
