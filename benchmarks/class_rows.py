"""The tables of docs/classes.md: rows, their text, and where two tables differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGE", "VERDICTS", "Row", "differences", "read", "summary", "table", "write"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "classes.md"
HEAD = "## transformers "
VERDICTS = {"works", "refused", "no features", "no twin", "wrong"}


@dataclass(frozen=True)
class Row:
    """verdict: "works", "refused", "no features" (the class takes none), "no twin" or "wrong". text: adapter and
    signals, the refusal, or what went wrong."""

    model_type: str
    verdict: str
    text: str


def read(release: str) -> dict[str, Row]:
    """The table of a release on the page, by model type; empty if there is none."""
    part = _parts()[1].get(release, "")
    lines = [line for line in part.splitlines() if line.startswith("| ")][1:]
    rows = [Row(*line[2:-2].split(" | ", 2)) for line in lines]
    return {row.model_type: row for row in rows}


def write(release: str, rows: Sequence[Row]) -> None:
    """Put the table of a release onto the page, newest release first."""
    head, parts = _parts()
    parts[release] = table(release, rows)
    PAGE.write_text(head + "\n".join(p.rstrip() + "\n" for _, p in sorted(parts.items(), reverse=True)), "utf-8")


def differences(release: str, rows: Sequence[Row]) -> list[str]:
    """One line for each row that the page shows otherwise or not at all."""
    known, lines = read(release), []
    for row in rows:
        found, shown = f"found: {row.verdict}, {row.text}", known.get(row.model_type)
        if shown is None:
            lines.append(f"{row.model_type}: not on the page; {found}")
        elif shown != row:
            lines.append(f"{row.model_type}: the page says {shown.verdict}, {shown.text}; {found}")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """How many there are, and how many work."""
    works = sum(r.verdict == "works" for r in rows)
    takes = sum(r.verdict != "no features" for r in rows)
    return f"{len(rows)} classes; {takes} take features from outside; {works} of those work on their twins."


def table(release: str, rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [
        HEAD + release,
        "",
        summary(rows),
        "",
        "| class | verdict | adapter: signals, or why not |",
        "|---|---|---|",
        *(f"| {r.model_type} | {r.verdict} | {r.text} |" for r in sorted(rows, key=lambda r: r.model_type)),
    ]
    return "\n".join(lines) + "\n"


def _parts() -> tuple[str, dict[str, str]]:
    """What stands in front of the tables, and each by its release."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    return head, {p.partition("\n")[0]: HEAD + p for p in rest.split(HEAD) if p}
