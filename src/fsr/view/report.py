"""The report: one HTML file that shows which visual tokens were kept for a question, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fsr.drawing.palette import HEAT
from fsr.drawing.panels import roles
from fsr.tokens import Stage
from fsr.view import maps
from fsr.view.canvas import Canvas, data_uri, lay_out, token_name
from fsr.view.comparison import Comparison, MethodRun
from fsr.view.curves import mass_curve, radius_curve
from fsr.view.html import Markup, join, tag
from fsr.view.page import page
from fsr.view.tables import answers, key, times, tokens

__all__ = ["page_data", "render"]

CODES = {"focus": "f", "scan": "s", "merged": "m", "whole": "w", "absorbed": "a", "dropped": "d", "structural": "d"}


def render(comparison: Comparison, live: bool = False) -> str:
    """The whole report as one self-contained HTML document.

    live: without the heading and with the kept tokens first, for a page that has answered already.

    Raises:
        UsageError: the selections carry no geometry.
    """
    canvas = lay_out(comparison.image, comparison.unpruned.selection.geometry)
    primary = _primary(comparison)
    legend = key(asked=_asked(comparison.runs[primary[0]]))
    sides = _sides(comparison, canvas, legend if live else None) if live or len(comparison.runs) > 1 else None
    middle = [_scores(comparison, canvas, primary), _steps(comparison, canvas, primary, None if live else legend)]
    looks = [name for name, on in (("wide", len(canvas.placed) > 2), ("live", live)) if on]
    body = [
        maps.picture_defs(canvas, [data_uri(p) for p in canvas.pictures], ""),
        None if live else tag("header", _head(comparison, canvas)),
        tag(
            "main",
            [sides, *middle] if live else [*middle, sides],
            _clock(comparison),
            cls=" ".join(looks) or None,
        ),
        tag("footer", _foot(comparison)),
    ]
    return page(f"{comparison.question} · what was kept", body, page_data([comparison], canvas))


def page_data(comparisons: Sequence[Comparison], canvas: Canvas) -> dict[str, Any]:
    """What the script tells about tokens; views are numbered through all comparisons in order."""
    views = []
    for n, comparison in enumerate(comparisons):
        for run in comparison.runs:
            s = run.selection
            views.append(
                {
                    "case": n,
                    "name": run.name,
                    "keep": s.kept,
                    "role": "".join(CODES[r] for r in roles(s)),
                    "order": dict(zip(s.rows.tolist(), s.order.tolist())),
                    "into": {i: a for i, a in enumerate(s.merged_into.tolist()) if a >= 0},
                    "priority": _plain(s.priority),
                    "nearest": list(run.nearest) if run.nearest else None,
                    "likeness": [round(v, 3) for v in run.likeness] if run.likeness else None,
                }
            )
    return {
        "spots": {r: [round(v, 2) for v in (s.x, s.y, s.w, s.h)] for r, s in canvas.boxes.items()},
        "names": canvas.names,
        "cases": [
            {name: _plain(comparison.score(name)) for name in ("saliency", "relevance")} for comparison in comparisons
        ],
        "views": views,
    }


# ----------------------------------------------------------------------------------------------------------------------


def _primary(comparison: Comparison) -> list[int]:
    """Which views the step-by-step part is about: FSR at every budget, or the first method."""
    names = [s.name for s in comparison.runs]
    chosen = "fsr" if "fsr" in names else names[0]
    return [i for i, name in enumerate(names) if name == chosen]


def _asked(run: MethodRun) -> bool:
    """Whether the question had a say in the choice."""
    return run.selection.relevance is not None


def _source(comparison: Comparison) -> str:
    """Where the relevance that is shown came from (see `Comparison.read_by`); of a folder no more than its end."""
    run = comparison.read_by("relevance")
    if run is None:
        return "nowhere: none was read"
    return "/".join(Path(run.relevance).parts[-2:]) if Path(run.relevance).is_absolute() else run.relevance


def _head(comparison: Comparison, canvas: Canvas) -> Markup:
    total = comparison.unpruned.selection.total
    lead = f"{comparison.model or 'The model'} sees {total} visual tokens of this picture."
    if len(canvas.pictures) > 1:
        lead = f"{comparison.model or 'The model'} sees {total} visual tokens in {len(canvas.pictures)} frames."
    return join(
        [
            tag("p", "Which visual tokens were kept, and why", cls="kicker"),
            tag("h1", f"“{comparison.question}”"),
            tag("p", lead, cls="lead"),
            answers(comparison),
        ]
    )


def _scores(comparison: Comparison, canvas: Canvas, primary: Sequence[int]) -> Markup:
    run = comparison.runs[primary[0]]
    figures = [
        _figure(
            maps.plain(canvas, "", "The picture as the model saw it."), tag("strong", "Picture"), " as the model saw it"
        )
    ]
    texts = {
        "saliency": "how much the vision tower attends to a token",
        "relevance": f"how close a token is to the question (from {_source(comparison)})",
        "priority": f"{'both together' if _asked(run) else 'saliency alone'}: what {run.name} ranks by",
    }
    for name, meaning in texts.items():
        values = run.selection.priority if name == "priority" else comparison.score(name)
        if values is None:
            continue
        plain = [0.0 if v is None else v for v in _plain(values) or []]
        inside = {r: plain[r] for r in canvas.boxes}
        best = max(inside, key=inside.__getitem__)
        label = f"Map of {name}. Highest at {token_name(canvas, best)}."
        drawing = maps.heat(canvas, "", plain, label, primary[0])
        drawing = Markup(drawing.replace("<svg ", '<svg data-follow="" ', 1))
        figures.append(_figure(drawing, _scale(inside.values()), tag("strong", name.capitalize()), f": {meaning}"))
    note = tag("p", "Point at a token, or move with the arrow keys, to read its scores, stage and rank.", cls="lead")
    return tag("section", tag("h2", "Scores"), note, tag("div", figures, cls="grid"))


def _steps(comparison: Comparison, canvas: Canvas, primary: Sequence[int], legend: Markup | None) -> Markup:
    name = comparison.runs[primary[0]].name
    pills = []
    for n, i in enumerate(primary):
        pills.append(tag("input", type="radio", name="budget", id=f"b{i}", value=i, checked=n == 0))
        pills.append(tag("label", comparison.runs[i].keep, for_=f"b{i}"))
    picker = tag("fieldset", tag("legend", "Tokens kept"), pills) if len(primary) > 1 else None
    panels = [tag("div", _steps_of(comparison, canvas, i), cls="panel", data_for=i) for i in primary]
    return tag("section", tag("h2", f"Step by step: {name}"), legend, picker, panels)


def _steps_of(comparison: Comparison, canvas: Canvas, view: int) -> list[Markup]:
    run = comparison.runs[view]
    s = run.selection
    steps = []
    if s.n_focus:
        words = f"{s.n_focus} tokens with the highest priority, numbered by rank."
        if run.rho is None and run.covered:
            words = f"{s.n_focus} tokens that together span the most priority: they cover {100 * run.covered[-1]:.0f} %"
            words += " of its mass. Numbered in the order of choice."
        elif run.rho is not None and run.covered is not None:
            words = f"{s.n_focus} distinct tokens cover {100 * run.covered[-1]:.0f} % of the priority mass"
            words += f" (ρ = {run.rho:g}), numbered in the order of choice."
        elif run.rho is not None and s.focus_wanted is not None:
            part = "the priority mass" if run.mass == "all" else f"the mass of the {s.kept} highest"
            words = f"{s.focus_wanted} tokens hold {100 * run.rho:g} % of {part}"
            words += (
                ", numbered by rank."
                if s.focus_wanted == s.n_focus
                else f"; the budget lets Focus take {s.n_focus}, numbered by rank."
            )
        drawing = maps.order_map(canvas, "", s, Stage.FOCUS, f"Focus set. {words}", view)
        steps.append(_step("Focus", "local evidence", words, drawing, mass_curve(run)))
    if s.n_scan:
        words = f"{s.n_scan} more tokens, numbered in the order of choice."
        if s.radii is not None and len(s.radii):
            words = f"{s.n_scan} times the token that is least like all chosen ones, numbered in the order of choice."
        drawing = maps.order_map(canvas, "", s, Stage.SCAN, f"Scan set. {words}", view)
        steps.append(_step("Scan", "global context", words, drawing, radius_curve(run), _certificate(run)))
    merged = int((s.merged_into >= 0).sum())
    if merged:
        anchors = len({a for a in s.merged_into.tolist() if a >= 0})
        many = f"{anchors} anchors" if anchors > 1 else "one anchor"
        words = f"The {merged} dropped tokens most like a scan anchor are merged into it ({many})."
        drawing = maps.arrows(canvas, "", s, f"Merges. {words}", view)
        steps.append(_step("Refine", "aggregation", words, drawing, _anchors(run, canvas)))
    words = f"{s.kept} of {s.total} tokens reach the language model, in raster order."
    drawing = maps.kept_map(canvas, "", s, _kept_label(run), view)
    steps.append(
        _step("Kept", "what the language model sees", words, drawing, _said(run), tokens(comparison, run, canvas))
    )
    return steps


def _sides(comparison: Comparison, canvas: Canvas, legend: Markup | None) -> Markup:
    budgets: dict[int, list[int]] = {}
    for i, run in enumerate(comparison.runs):
        budgets.setdefault(run.keep, []).append(i)
    parts = []
    for keep, views in budgets.items():
        figures = []
        for i in views:
            run = comparison.runs[i]
            drawing = maps.kept_map(canvas, "", run.selection, _kept_label(run), i)
            figures.append(_figure(drawing, tag("strong", run.name), f": {run.text or '(nothing)'}"))
        parts.append(tag("h3", f"{keep} of {comparison.unpruned.selection.total} tokens", cls="budget"))
        parts.append(tag("div", figures, cls="sides", style=f"--n:{min(len(figures), 4) if len(figures) != 5 else 3}"))
    lead = tag("p", f"With all tokens the model answers “{comparison.unpruned.text}”.", cls="lead")
    title = "Side by side at equal budget" if len(comparison.runs) > 1 else "What is kept"
    return tag("section", tag("h2", title), lead, legend, parts)


def _clock(comparison: Comparison) -> Markup:
    words = (
        "One run each after a warm-up. The picture is encoded once: vision tower and saliency are the same "
        "measurement in every row, and a question embedded once is not embedded again."
    )
    return tag("section", tag("h2", "Time by stage"), tag("p", words, cls="lead"), times(comparison))


def _foot(comparison: Comparison) -> list[Markup | None]:
    notes = tag("ul", [tag("li", n) for n in comparison.notes], cls="plain") if comparison.notes else None
    how = (
        "Saliency is attention in one layer of the vision tower; relevance is the similarity to the question, here "
        f"from {_source(comparison)}, with its sign applied. Priority is what a method makes of the two; without "
        "relevance it is saliency alone. Focus-Scan-Refine is arXiv 2602.05809."
    )
    return [tag("h2", "Notes") if notes else None, notes, tag("p", how)]


def _certificate(run: MethodRun) -> Markup | None:
    c = run.selection.certificate
    if c is None:
        return None
    words = (
        f"In the end every token lies within {c.radius_cos:.3f} (1 − cos) of a kept one; chordal {c.radius_chord:.3f}. "
    )
    words += f"No choice of as many scan tokens could get below {c.optimum_at_least:.3f} chordal."
    return tag("p", words, cls="lead")


def _anchors(run: MethodRun, canvas: Canvas) -> Markup:
    """The anchors that absorbed most."""
    eaten: dict[int, list[int]] = {}
    for i, a in enumerate(run.selection.merged_into.tolist()):
        if a >= 0:
            eaten.setdefault(a, []).append(i)
    rows = []
    for a, sources in sorted(eaten.items(), key=lambda item: (-len(item[1]), item[0]))[:6]:
        cells = [tag("td", token_name(canvas, a)), tag("td", len(sources), cls="n")]
        if run.likeness is not None:
            cells.append(tag("td", f"{sum(run.likeness[i] for i in sources) / len(sources):.2f}", cls="n"))
        rows.append(tag("tr", cells))
    titles = [tag("th", "anchor"), tag("th", "absorbed", cls="n")]
    if run.likeness is not None:
        titles.append(tag("th", "mean cosine", cls="n"))
    return tag("table", tag("thead", tag("tr", titles)), tag("tbody", rows), cls="small")


def _said(run: MethodRun) -> Markup:
    return tag("p", "Answer: ", tag("b", run.text or "(nothing)"))


def _kept_label(run: MethodRun) -> str:
    s = run.selection
    parts = [f"{s.n_focus} Focus" if s.n_focus else "", f"{s.n_scan} Scan" if s.n_scan else ""]
    split = " and ".join(p for p in parts if p)
    return f"{run.name} keeps {s.kept} of {s.total} tokens{f': {split}' if split else ''}."


def _step(title: str, gloss: str, words: str, drawing: Markup, *more: Markup | None) -> Markup:
    head = tag("h3", title, " ", tag("small", gloss))
    return tag("div", tag("figure", drawing), tag("div", head, tag("p", words), more), cls="step")


def _figure(drawing: Markup, *caption: Any) -> Markup:
    return tag("figure", drawing, tag("figcaption", caption))


def _scale(values: Any) -> Markup:
    known = list(values)
    colors = ",".join([*HEAT[:: len(HEAT) // 6], HEAT[-1]])
    bar = tag("i", style=f"background:linear-gradient(90deg,{colors})", aria_hidden="true")
    return tag("span", f"{min(known):.2g}", bar, f"{max(known):.2g}", cls="scale")


def _plain(values: Tensor | None) -> list[float | None] | None:
    """Numbers for JSON, four digits; what is not finite (structural rows) becomes null."""
    if values is None:
        return None
    return [float(f"{v:.4g}") if v == v and abs(v) != float("inf") else None for v in values.tolist()]
