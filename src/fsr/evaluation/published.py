"""The paper's Tables 1 to 6 as data (arXiv 2602.05809), and both ways to average their rows.

The paper's "Avg." is the sum of a row's scores over the sum of the unpruned model's, MME divided by 20, over the
benchmarks that both have (`rel_sum`): all printed averages follow to 0.1. It is not the mean of the ratios
(`rel_mean`), which is up to 1.5 higher or 0.9 lower. MM-Vet has 218 questions and a judge, hence both also without it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from fsr.errors import UsageError
from fsr.evaluation.statistics import mean_of_ratios, ratio_of_means

__all__ = ["TABLES", "Averages", "PaperRow", "PaperTable", "averages", "comparable", "table"]

# Number -> file in `paper/`, and what the table is about.
TABLES = {
    1: ("table1_llava_1_5_7b.csv", "LLaVA-1.5-7B"),
    2: ("table2_llava_next_7b.csv", "LLaVA-NeXT-7B, five tiles"),
    3: ("table3_qwen2_5_vl_7b.csv", "Qwen2.5-VL-7B"),
    4: ("table4_llava_video_7b_qwen2.csv", "LLaVA-Video-7B-Qwen2, 32 frames"),
    5: ("table5_llava_1_5_13b.csv", "LLaVA-1.5-13B"),
    6: ("table6_llava_next_13b.csv", "LLaVA-NeXT-13B, five tiles"),
}
SMALL = "MMVet"  # the benchmark that averages are also made without
_DIVIDED = {"MME": 20.0}


@dataclass(frozen=True)
class PaperRow:
    """budget: in the table's own unit. scores: by column, those that are printed. printed: its "Avg.", or None."""

    budget: float
    method: str
    scores: Mapping[str, float]
    printed: float | None


@dataclass(frozen=True)
class PaperTable:
    """unit: what budgets count, "tokens" or "reduction_percent". rows: the unpruned model first."""

    number: int
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    @property
    def base(self) -> PaperRow:
        """The unpruned model."""
        return self.rows[0]


@dataclass(frozen=True)
class Averages:
    """In percent of the unpruned model, over `count` benchmarks; None over none."""

    rel_sum: float | None
    rel_mean: float | None
    count: int


def table(number: int) -> PaperTable:
    """One of the paper's tables.

    Raises:
        UsageError: no such number.
    """
    if number not in TABLES:
        raise UsageError(f"no table {number}: choose from {', '.join(map(str, TABLES))}.")
    name, title = TABLES[number]
    with (files("fsr.evaluation") / "paper" / name).open(encoding="utf-8") as file:
        head, *lines = list(csv.reader(file))
    columns = tuple(head[2:-1])
    rows = tuple(
        PaperRow(
            budget=float(line[0]),
            method=line[1],
            scores={c: float(v) for c, v in zip(columns, line[2:-1]) if v},
            printed=float(line[-1]) if line[-1] else None,
        )
        for line in lines
    )
    return PaperTable(number, title, head[0], columns, rows)


def comparable(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores on one scale: MME's 2800 divided by 20."""
    return {name: value / _DIVIDED.get(name, 1.0) for name, value in scores.items()}


def averages(scores: Mapping[str, float], base: Mapping[str, float], leave_out: str | None = None) -> Averages:
    """Both averages of a row against the unpruned scores `base`, over the benchmarks that both have."""
    mine, full = comparable(scores), comparable(base)
    common = [name for name in full if name in mine and name != leave_out]
    if not common:
        return Averages(None, None, 0)
    mine, full = {name: mine[name] for name in common}, {name: full[name] for name in common}
    return Averages(100 * ratio_of_means(mine, full), 100 * mean_of_ratios(mine, full), len(common))
