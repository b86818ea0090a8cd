"""The report: one HTML file that shows which visual tokens were kept for a question, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fsr.drawing.palette import HEAT
from fsr.drawing.panels import roles
from fsr.tokens import Stage
from fsr.view import maps
from fsr.view.canvas import Sheet, data_uri, lay_out, token_name
from fsr.view.comparison import Case, Shown
from fsr.view.curves import mass_curve, radius_curve
from fsr.view.html import Markup, join, tag
from fsr.view.page import page
from fsr.view.tables import answers, key, times, tokens

__all__ = ["page_data", "render"]

CODES = {"focus": "f", "scan": "s", "merged": "m", "whole": "w", "absorbed": "a", "dropped": "d", "structural": "d"}


def render(case: Case, live: bool = False) -> str:
    """The whole report as one self-contained HTML document.

    live: without the heading and with the kept tokens first, for a page that has answered already.

    Raises:
        UsageError: the selections carry no geometry.
    """
    sheet = lay_out(case.image, case.unpruned.selection.geometry)
    primary = _primary(case)
    legend = key(asked=_asked(case.shown[primary[0]]))
    sides = _sides(case, sheet, legend if live else None) if live or len(case.shown) > 1 else None
    middle = [_scores(case, sheet, primary), _steps(case, sheet, primary, None if live else legend)]
    looks = [name for name, on in (("wide", len(sheet.placed) > 2), ("live", live)) if on]
    body = [
        maps.picture_defs(sheet, [data_uri(p) for p in sheet.pictures], ""),
        None if live else tag("header", _head(case, sheet)),
        tag(
            "main",
            [sides, *middle] if live else [*middle, sides],
            _clock(case),
            cls=" ".join(looks) or None,
        ),
        tag("footer", _foot(case)),
    ]
    return page(f"{case.question} · what was kept", body, page_data([case], sheet))


def page_data(cases: Sequence[Case], sheet: Sheet) -> dict[str, Any]:
    """What the script tells about tokens; views are numbered through all cases in order."""
    views = []
    for n, case in enumerate(cases):
        for shown in case.shown:
            s = shown.selection
            views.append(
                {
                    "case": n,
                    "name": shown.name,
                    "keep": s.kept,
                    "role": "".join(CODES[r] for r in roles(s)),
                    "order": dict(zip(s.rows.tolist(), s.order.tolist())),
                    "into": {i: a for i, a in enumerate(s.merged_into.tolist()) if a >= 0},
                    "priority": _plain(s.priority),
                    "nearest": list(shown.nearest) if shown.nearest else None,
                    "likeness": [round(v, 3) for v in shown.likeness] if shown.likeness else None,
                }
            )
    return {
        "spots": {r: [round(v, 2) for v in (s.x, s.y, s.w, s.h)] for r, s in sheet.spots.items()},
        "names": sheet.names,
        "cases": [{name: _plain(case.score(name)) for name in ("saliency", "relevance")} for case in cases],
        "views": views,
    }


# ----------------------------------------------------------------------------------------------------------------------


def _primary(case: Case) -> list[int]:
    """Which views the step-by-step part is about: FSR at every budget, or the first method."""
    names = [s.name for s in case.shown]
    chosen = "fsr" if "fsr" in names else names[0]
    return [i for i, name in enumerate(names) if name == chosen]


def _asked(shown: Shown) -> bool:
    """Whether the question had a say in the choice."""
    return shown.selection.relevance is not None


def _head(case: Case, sheet: Sheet) -> Markup:
    total = case.unpruned.selection.total
    lead = f"{case.model or 'The model'} sees {total} visual tokens of this picture."
    if len(sheet.pictures) > 1:
        lead = f"{case.model or 'The model'} sees {total} visual tokens in {len(sheet.pictures)} frames."
    return join(
        [
            tag("p", "Which visual tokens were kept, and why", cls="kicker"),
            tag("h1", f"“{case.question}”"),
            tag("p", lead, cls="lead"),
            answers(case),
        ]
    )


def _scores(case: Case, sheet: Sheet, primary: Sequence[int]) -> Markup:
    shown = case.shown[primary[0]]
    figures = [
        _figure(
            maps.plain(sheet, "", "The picture as the model saw it."), tag("strong", "Picture"), " as the model saw it"
        )
    ]
    texts = {
        "saliency": "how much the vision tower attends to a token",
        "relevance": "how close a token is to the question",
        "priority": f"{'both together' if _asked(shown) else 'saliency alone'}: what {shown.name} ranks by",
    }
    for name, meaning in texts.items():
        values = shown.selection.priority if name == "priority" else case.score(name)
        if values is None:
            continue
        plain = [0.0 if v is None else v for v in _plain(values) or []]
        inside = {r: plain[r] for r in sheet.spots}
        best = max(inside, key=inside.__getitem__)
        label = f"Map of {name}. Highest at {token_name(sheet, best)}."
        drawing = maps.heat(sheet, "", plain, label, primary[0])
        drawing = Markup(drawing.replace("<svg ", '<svg data-follow="" ', 1))
        figures.append(_figure(drawing, _scale(inside.values()), tag("strong", name.capitalize()), f": {meaning}"))
    note = tag("p", "Point at a token, or move with the arrow keys, to read its scores, stage and rank.", cls="lead")
    return tag("section", tag("h2", "Scores"), note, tag("div", figures, cls="grid"))


def _steps(case: Case, sheet: Sheet, primary: Sequence[int], legend: Markup | None) -> Markup:
    name = case.shown[primary[0]].name
    pills = []
    for n, i in enumerate(primary):
        pills.append(tag("input", type="radio", name="budget", id=f"b{i}", value=i, checked=n == 0))
        pills.append(tag("label", case.shown[i].keep, for_=f"b{i}"))
    picker = tag("fieldset", tag("legend", "Tokens kept"), pills) if len(primary) > 1 else None
    panels = [tag("div", _steps_of(case, sheet, i), cls="panel", data_for=i) for i in primary]
    return tag("section", tag("h2", f"Step by step: {name}"), legend, picker, panels)


def _steps_of(case: Case, sheet: Sheet, view: int) -> list[Markup]:
    shown = case.shown[view]
    s = shown.selection
    steps = []
    if s.n_focus:
        words = f"{s.n_focus} tokens with the highest priority, numbered by rank."
        if shown.rho is not None and shown.covered is not None:
            words = f"{s.n_focus} distinct tokens cover {100 * shown.covered[-1]:.0f} % of the priority mass"
            words += f" (ρ = {shown.rho:g}), numbered in the order of choice."
        elif shown.rho is not None and s.focus_wanted is not None:
            part = "the priority mass" if shown.mass == "all" else f"the mass of the {s.kept} highest"
            words = f"{s.focus_wanted} tokens hold {100 * shown.rho:g} % of {part}"
            words += (
                ", numbered by rank."
                if s.focus_wanted == s.n_focus
                else f"; the budget lets Focus take {s.n_focus}, numbered by rank."
            )
        drawing = maps.order_map(sheet, "", s, Stage.FOCUS, f"Focus set. {words}", view)
        steps.append(_step("Focus", "local evidence", words, drawing, mass_curve(shown)))
    if s.n_scan:
        words = f"{s.n_scan} more tokens, numbered in the order of choice."
        if s.radii is not None and len(s.radii):
            words = f"{s.n_scan} times the token that is least like all chosen ones, numbered in the order of choice."
        drawing = maps.order_map(sheet, "", s, Stage.SCAN, f"Scan set. {words}", view)
        steps.append(_step("Scan", "global context", words, drawing, radius_curve(shown), _certificate(shown)))
    merged = int((s.merged_into >= 0).sum())
    if merged:
        anchors = len({a for a in s.merged_into.tolist() if a >= 0})
        many = f"{anchors} anchors" if anchors > 1 else "one anchor"
        words = f"The {merged} dropped tokens most like a scan anchor are merged into it ({many})."
        drawing = maps.arrows(sheet, "", s, f"Merges. {words}", view)
        steps.append(_step("Refine", "aggregation", words, drawing, _anchors(shown, sheet)))
    words = f"{s.kept} of {s.total} tokens reach the language model, in raster order."
    drawing = maps.kept_map(sheet, "", s, _kept_label(shown), view)
    steps.append(
        _step("Kept", "what the language model sees", words, drawing, _said(shown), tokens(case, shown, sheet))
    )
    return steps


def _sides(case: Case, sheet: Sheet, legend: Markup | None) -> Markup:
    budgets: dict[int, list[int]] = {}
    for i, shown in enumerate(case.shown):
        budgets.setdefault(shown.keep, []).append(i)
    parts = []
    for keep, views in budgets.items():
        figures = []
        for i in views:
            shown = case.shown[i]
            drawing = maps.kept_map(sheet, "", shown.selection, _kept_label(shown), i)
            figures.append(_figure(drawing, tag("strong", shown.name), f": {shown.text or '(nothing)'}"))
        parts.append(tag("h3", f"{keep} of {case.unpruned.selection.total} tokens", cls="budget"))
        parts.append(tag("div", figures, cls="sides", style=f"--n:{min(len(figures), 4) if len(figures) != 5 else 3}"))
    lead = tag("p", f"With all tokens the model answers “{case.unpruned.text}”.", cls="lead")
    title = "Side by side at equal budget" if len(case.shown) > 1 else "What is kept"
    return tag("section", tag("h2", title), lead, legend, parts)


def _clock(case: Case) -> Markup:
    words = (
        "One run each after a warm-up. The picture is encoded once: vision tower and saliency are the same "
        "measurement in every row, and a question embedded once is not embedded again."
    )
    return tag("section", tag("h2", "Time by stage"), tag("p", words, cls="lead"), times(case))


def _foot(case: Case) -> list[Markup | None]:
    notes = tag("ul", [tag("li", n) for n in case.notes], cls="plain") if case.notes else None
    how = [
        "Saliency is attention in one layer of the vision tower; relevance is the similarity to the question in the "
        "space of the paired text tower, with its sign applied, or of the model's own word embeddings (relevance "
        "'embedding'); without relevance α is 0; priority = relevance",
        tag("sup", "α"),
        " · saliency",
        tag("sup", "β"),
        " on scores from 0 to 1. Focus-Scan-Refine is arXiv 2602.05809.",
    ]
    return [tag("h2", "Notes") if notes else None, notes, tag("p", how)]


def _certificate(shown: Shown) -> Markup | None:
    c = shown.selection.certificate
    if c is None:
        return None
    words = (
        f"In the end every token lies within {c.radius_cos:.3f} (1 − cos) of a kept one; chordal {c.radius_chord:.3f}. "
    )
    words += f"No choice of as many scan tokens could get below {c.optimum_at_least:.3f} chordal."
    return tag("p", words, cls="lead")


def _anchors(shown: Shown, sheet: Sheet) -> Markup:
    """The anchors that absorbed most."""
    eaten: dict[int, list[int]] = {}
    for i, a in enumerate(shown.selection.merged_into.tolist()):
        if a >= 0:
            eaten.setdefault(a, []).append(i)
    rows = []
    for a, sources in sorted(eaten.items(), key=lambda item: (-len(item[1]), item[0]))[:6]:
        cells = [tag("td", token_name(sheet, a)), tag("td", len(sources), cls="n")]
        if shown.likeness is not None:
            cells.append(tag("td", f"{sum(shown.likeness[i] for i in sources) / len(sources):.2f}", cls="n"))
        rows.append(tag("tr", cells))
    titles = [tag("th", "anchor"), tag("th", "absorbed", cls="n")]
    if shown.likeness is not None:
        titles.append(tag("th", "mean cosine", cls="n"))
    return tag("table", tag("thead", tag("tr", titles)), tag("tbody", rows), cls="small")


def _said(shown: Shown) -> Markup:
    return tag("p", "Answer: ", tag("b", shown.text or "(nothing)"))


def _kept_label(shown: Shown) -> str:
    s = shown.selection
    parts = [f"{s.n_focus} Focus" if s.n_focus else "", f"{s.n_scan} Scan" if s.n_scan else ""]
    split = " and ".join(p for p in parts if p)
    return f"{shown.name} keeps {s.kept} of {s.total} tokens{f': {split}' if split else ''}."


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
