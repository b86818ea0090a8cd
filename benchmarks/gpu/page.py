"""One Markdown page from the JSON files of a run: what was promised, what was measured, what failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bars import BARS, Results


def write_page(folder: Path, pretend: bool) -> None:
    """`page.md` in the folder of a run."""
    results: Results = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}
    steps = results.pop("steps", {})
    about = next((r["about"] for r in results.values() if isinstance(r.get("about"), dict)), {})
    lines = [f"# FSR on {about.get('device', 'an unknown device')}", ""]
    if pretend:
        lines += [
            "**A rehearsal on the CPU with tiny sizes: it shows that every step runs. No number here counts.**",
            "",
        ]
    lines += [", ".join(f"{k} {v}" for k, v in about.items() if v is not None), ""]
    lines += ["## Steps", "", *_table(("step", "state", "seconds"), _steps(steps)), ""]
    lines += ["## Bars", "", *_table(("promised", "measured", ""), (bar.check(results, pretend) for bar in BARS)), ""]
    lines += [*_tests(results.get("tests", {})), *_selection(results.get("selection", {}))]
    lines += [*_models(results.get("models", {})), *_shares(results.get("shares", {}))]
    lines += _failures(results)
    (folder / "page.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    marks = ["---", *("---:" for _ in head[1:])]
    return [_line(head), _line(marks), *(_line(row) for row in rows)]


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"


def _steps(steps: dict[str, Any]) -> list[tuple[str, str, float]]:
    return [(f"{name}: {s['what']}", s["state"], round(s["seconds"])) for name, s in steps.items()]


def _tests(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    lines = [
        "## Tests on the device",
        "",
        f"`pytest -m cuda`: {found.get('tests', {}).get('summary', 'did not run')}",
        "",
    ]
    for name, value in found.get("sanitizer", {}).items():
        lines += [f"- {name}: {value.get('status') if isinstance(value, dict) else value}"]
    return [*lines, ""]


def _selection(found: dict[str, Any]) -> list[str]:
    cases = {name: c for name, c in found.items() if isinstance(c, dict) and "floor" in c}
    if not cases:
        return []
    lines = ["## One selection, milliseconds", "", f"Rates measured in this run: {found.get('rates')}", ""]
    rows = []
    for name, case in cases.items():
        floor = max(case["floor"].values())
        for method, times in case.items():
            if isinstance(times, dict) and "called_ms" in times:
                rows.append((name, method, times.get("graph_ms", "-"), times["called_ms"], floor))
    lines += [*_table(("case", "method", "from a graph", "called", "floor"), rows), ""]
    ways = {n.removeprefix("ways to take cosines: "): c for n, c in found.items() if n.startswith("ways to take")}
    rows = [
        (case, way, value.get("graph_ms", "-"), value.get("largest_error", value.get("error", "-")))
        for case, found_ways in ways.items()
        for way, value in found_ways.items()
        if isinstance(value, dict)
    ]
    return (
        [*lines, "Ways to take all cosines:", "", *_table(("case", "way", "ms", "largest error"), rows), ""]
        if rows
        else lines
    )


def _models(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, model in found.items():
        if not isinstance(model, dict) or "results" not in model:
            continue
        lines += [f"## {name}", "", f"{model['dtype']}, {model['attention']}, {model['language_layers']} layers", ""]
        rows = []
        for row in model["results"]:
            ms = {stage: spread["median"] for stage, spread in row["ms"].items()}
            stages = [
                ms[s] for s in ("vision_tower", "selection", "prefill", "time_to_first_token", "decode_per_token")
            ]
            peak = (row.get("peak") or {}).get("total_mib", "-")
            kept = f"{row['visual_tokens']['after']} of {row['visual_tokens']['before']}"
            rows.append((row["method"], kept, *(float(s) for s in stages), peak))
        head = ("method", "visual tokens", "vision tower", "selection", "prefill", "first token", "decode per token")
        lines += [*_table((*head, "peak, MiB"), rows), "", *(f"- {v}" for v in model["verdicts"]), ""]
    table = found.get("table 7, counted")
    if isinstance(table, dict) and "rows" in table:
        lines += [
            "## Table 7 of the paper, counted by its conventions",
            "",
            "```",
            json.dumps(table["rows"], indent=1),
            "```",
            "",
        ]
    return lines


def _shares(found: dict[str, Any]) -> list[str]:
    rows = [
        (part, key, value)
        for part, values in found.items()
        if part != "about" and isinstance(values, dict) and "error" not in values
        for key, value in values.items()
        if isinstance(value, int | float | bool)
    ]
    return ["## Signals and compiling", "", *_table(("part", "what", "value"), rows), ""] if rows else []


def _failures(results: Results) -> list[str]:
    lines = [
        f"- {step}, {part}: {value['error']}"
        for step, parts in results.items()
        for part, value in parts.items()
        if isinstance(value, dict) and "error" in value
    ]
    skipped = [
        f"- {step}, {part}: {value['skipped']}"
        for step, parts in results.items()
        for part, value in parts.items()
        if isinstance(value, dict) and "skipped" in value
    ]
    return ["## What failed or was left out", "", *(lines + skipped or ["- nothing"])]
