"""Tables and keys of a report: answers, times, kept tokens, what the line styles mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsr.drawing.palette import INKS
from fsr.drawing.panels import roles
from fsr.tokens import Stage
from fsr.view.canvas import Canvas, token_name
from fsr.view.comparison import Comparison, MethodRun
from fsr.view.curves import STAGES, time_bar
from fsr.view.html import Markup, tag

__all__ = ["answers", "key", "times", "tokens"]


def answers(comparison: Comparison) -> Markup:
    """What the model said with all tokens and with each selection."""
    full = comparison.unpruned
    rows = [_answer_row(full, "—", "whole")]
    for s in comparison.runs:
        same = s.text == full.text
        rows.append(_answer_row(s, tag("span", "same" if same else "differs", cls="same" if same else "differs"), None))
    head = _head(["method", ("tokens", "n"), ("share", "n share"), "answer", "against all tokens"])
    return tag("div", tag("table", head, tag("tbody", rows), cls="answers"), cls="scroll")


def times(comparison: Comparison) -> Markup:
    """Milliseconds by stage, as bars and numbers."""
    runs = [comparison.unpruned, *comparison.runs]
    stages = [k for k in STAGES if any(r.stages_ms.get(k, 0.0) > 0 for r in runs)]
    longest = max((sum(r.stages_ms.values()) for r in runs), default=1.0)
    rows = []
    for r in runs:
        name = r.name if r is comparison.unpruned else f"{r.name}, {r.keep}"
        numbers = [tag("td", f"{r.stages_ms.get(k, 0.0):.1f}", cls="n") for k in stages]
        total = tag("td", tag("b", f"{sum(r.stages_ms.values()):.1f}"), cls="n")
        rows.append(tag("tr", tag("td", name, time_bar(r.stages_ms, longest)), total, numbers))
    head = [tag("th", _swatch(k), STAGES[k], cls="n") for k in stages]
    top = tag("thead", tag("tr", tag("th", "run"), tag("th", "total, ms", cls="n"), head))
    return tag("div", tag("table", top, tag("tbody", rows)), cls="scroll")


def tokens(comparison: Comparison, run: MethodRun, canvas: Canvas) -> Markup:
    """Every kept token as a row, in the order of choice: what the pictures show, in words."""
    s = run.selection
    became = roles(s)
    order = sorted(zip(s.order.tolist(), s.rows.tolist()))
    into = s.merged_into.tolist()
    eaten: dict[int, list[int]] = {}
    for i, anchor in enumerate(into):
        eaten.setdefault(anchor, []).append(i)
    scores = [
        (n, v.tolist())
        for n, v in (("saliency", s.saliency), ("relevance", s.relevance), ("priority", s.priority))
        if v is not None
    ]
    rows = []
    for rank, row in order:
        merged = ", ".join(token_name(canvas, i) for i in eaten.get(row, [])) if row >= 0 else ""
        cells: list[Any] = [
            tag("td", rank + 1, cls="n"),
            tag("td", token_name(canvas, row)),
            tag("td", _stage(became[row])),
        ]
        cells += [tag("td", f"{v[row]:.3g}", cls="n") for _, v in scores]
        rows.append(tag("tr", cells, tag("td", merged or "—")))
    head = _head([("rank", "n"), "place", "stage", *((n, "n") for n, _ in scores), "absorbed"])
    table = tag("div", tag("table", head, tag("tbody", rows)), cls="scroll")
    return tag("details", tag("summary", f"All {s.kept} kept tokens as a table"), table)


def key(stages: Sequence[str] = ("focus", "scan", "absorbed"), asked: bool = True) -> Markup:
    """What the outlines mean. asked: whether Focus knew the question, or went by saliency alone."""
    words = {
        "focus": "Focus: what the question points at" if asked else "Focus: what stands out (the question had no say)",
        "scan": "Scan: the rest of the picture, spread out",
        "merged": "made of several tokens",
        "absorbed": "absorbed by a kept token",
    }
    dash = {"solid": None, "dashed": "5 3", "dotted": "1.5 3"}
    items = []
    for name in stages:
        ink = INKS[name]  # type: ignore[index]
        fill = "#808084" if name == "absorbed" else "#ffffff"
        square = tag(
            "rect",
            x=2,
            y=2,
            width=14,
            height=14,
            fill=fill,
            stroke=ink.color,
            stroke_width=2.6,
            stroke_dasharray=dash[ink.line],
        )
        items.append(tag("li", tag("svg", square, viewBox="0 0 18 18", aria_hidden="true"), words[name]))
    items.append(tag("li", tag("span", cls="swatch", style="background:#808084"), "dropped"))
    return tag("ul", items, cls="key")


# ----------------------------------------------------------------------------------------------------------------------


def _answer_row(s: MethodRun, verdict: Any, cls: str | None) -> Markup:
    share = f"{100 * s.keep / max(1, s.selection.total):.0f} %"
    ours = bool(s.rho or s.covered) and bool((s.selection.stage == Stage.SCAN).any())
    split = f" = {s.selection.n_focus} + {s.selection.n_scan}" if ours else ""
    cells = [tag("td", s.name), tag("td", f"{s.keep}{split}", cls="n"), tag("td", share, cls="n share")]
    return tag("tr", cells, tag("td", s.text or "(nothing)", cls="ans"), tag("td", verdict), cls=cls)


def _head(titles: Sequence[str | tuple[str, str]]) -> Markup:
    cells = [tag("th", t) if isinstance(t, str) else tag("th", t[0], cls=t[1]) for t in titles]
    return tag("thead", tag("tr", cells))


def _swatch(stage: str) -> Markup:
    return tag("span", cls=f"swatch st-{stage}", style="margin-right:6px;width:9px;height:9px", aria_hidden="true")


def _stage(role: str) -> Markup:
    return tag("b", role, cls=role) if role in ("focus", "scan") else tag("span", role)
