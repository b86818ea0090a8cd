"""The paper's Figures 1 and 2 (arXiv 2602.05809) for any picture: as a page, and as a PNG for papers.

Figure 1: an existence question against a reasoning question on the same picture, stage by stage. Figure 2: several
methods at the same small budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from PIL import Image

from fsr.drawing.kept_tokens import draw
from fsr.errors import UsageError
from fsr.tokens import Selection, Stage
from fsr.view import maps
from fsr.view.canvas import Sheet, data_uri, lay_out
from fsr.view.comparison import Case
from fsr.view.html import Markup, join, tag
from fsr.view.page import page
from fsr.view.png import Cell, compose
from fsr.view.report import page_data
from fsr.view.tables import key

__all__ = ["Figure", "figure_page", "figure_png", "only_stage"]

Figure = Literal[1, 2]
TITLES = {1: "Same picture, two questions", 2: "Methods at the same budget"}


def figure_page(which: Figure, cases: Sequence[Case]) -> str:
    """Figure 1 or 2 as a self-contained page with the same tooltips as the report.

    Raises:
        UsageError: the cases do not fit the figure.
    """
    _check(which, cases)
    sheet = lay_out(cases[0].image, cases[0].unpruned.selection.geometry)
    rows, view = [], 0
    for case in cases:
        rows.append(_stages(case, sheet, view) if which == 1 else _methods(case, sheet, view))
        view += len(case.shown)
    keep = cases[0].shown[0].keep
    lead = f"{cases[0].model or 'The model'}, {keep} of {cases[0].unpruned.selection.total} visual tokens kept."
    body = [
        maps.picture_defs(sheet, [data_uri(p) for p in sheet.pictures], ""),
        tag("header", tag("h1", TITLES[which]), tag("p", lead, cls="lead"), key(_key(cases))),
        tag("main", tag("div", rows, cls="paper")),
        tag("footer", tag("p", "Layout after Focus-Scan-Refine, arXiv 2602.05809, Figure ", which, ".")),
    ]
    return page(f"{TITLES[which]} · {' · '.join(c.question for c in cases)}", body, page_data(cases, sheet))


def figure_png(which: Figure, cases: Sequence[Case], cell: int = 480) -> Image.Image:
    """Figure 1 or 2 as one picture; `cell` is the width of each of its columns in pixels.

    Raises:
        UsageError: the cases do not fit the figure.
    """
    _check(which, cases)
    rows = []
    for case in cases:
        if which == 1:
            s = case.shown[0].selection
            focus, scan = only_stage(s, Stage.FOCUS), only_stage(s, Stage.SCAN)
            row = [
                Cell(_first(case), f"“{case.question}”", f"all {s.total} tokens: {case.unpruned.text}"),
                Cell(draw(case.image, focus, cell, legend=False), "Focus", f"{s.n_focus} tokens, local evidence"),
                Cell(draw(case.image, scan, cell, legend=False), "Scan", f"{s.n_scan} tokens, global context"),
                Cell(draw(case.image, s, cell, legend=False), "Kept", f"{s.kept} tokens: {case.shown[0].text}"),
            ]
        else:
            row = [Cell(_first(case), f"“{case.question}”", f"all tokens: {case.unpruned.text}")]
            row += [Cell(draw(case.image, s.selection, cell, legend=False), s.name, s.text) for s in case.shown]
        rows.append(row)
    return compose(rows, cell)


def only_stage(selection: Selection, stage: Stage) -> Selection:
    """The kept tokens of one stage, as if the others had been dropped; nothing merged."""
    mine = selection.stage == stage
    return replace(
        selection,
        rows=selection.rows[mine],
        features=selection.features[mine],
        stage=selection.stage[mine],
        order=selection.order[mine],
        merged_into=selection.merged_into.new_full(selection.merged_into.shape, -1),
    )


# ----------------------------------------------------------------------------------------------------------------------


def _check(which: Figure, cases: Sequence[Case]) -> None:
    if which == 1 and (
        len(cases) != 2 or any(not c.shown[0].selection.n_focus + c.shown[0].selection.n_scan for c in cases)
    ):
        raise UsageError(
            "figure 1 compares two questions, answered by a method with Focus and Scan at less than all tokens."
        )
    if which == 2 and not cases:
        raise UsageError("figure 2 needs a question.")
    if len({c.shown[0].keep for c in cases} | {s.keep for c in cases for s in c.shown}) > 1:
        raise UsageError("a figure compares equal budgets: give one --keep.")


def _stages(case: Case, sheet: Sheet, view: int) -> Markup:
    shown = case.shown[0]
    s = shown.selection
    cells = [
        _cell(maps.plain(sheet, "", "The picture."), "", f"With all {s.total} tokens: ", case.unpruned.text),
        _cell(_stage_map(sheet, s, Stage.FOCUS, view), "Focus", f"{s.n_focus} tokens, local evidence"),
        _cell(_stage_map(sheet, s, Stage.SCAN, view), "Scan", f"{s.n_scan} tokens, global context"),
        _cell(maps.kept_map(sheet, "", s, f"{s.kept} tokens kept.", view), "Kept", f"{s.kept} tokens: ", shown.text),
    ]
    return _row(case, cells, 4)


def _methods(case: Case, sheet: Sheet, view: int) -> Markup:
    cells = [_cell(maps.plain(sheet, "", "The picture."), "", "With all tokens: ", case.unpruned.text)]
    for i, shown in enumerate(case.shown):
        label = f"{shown.name} keeps {shown.keep} tokens."
        drawing = maps.kept_map(sheet, "", shown.selection, label, view + i)
        cells.append(_cell(drawing, shown.name, "", shown.text))
    return _row(case, cells, len(cells))


def _row(case: Case, cells: Sequence[Markup], columns: int) -> Markup:
    question = tag("p", f"“{case.question}”", cls="q")
    return tag("section", question, tag("div", cells, cls="cols", style=f"--n:{columns}"), cls="row")


def _cell(drawing: Markup, title: str, words: str, answer: str = "") -> Markup:
    head = join([tag("strong", title), ": " if words or answer else ""]) if title else None
    return tag("figure", drawing, tag("figcaption", head, words, tag("strong", answer) if answer else None))


def _stage_map(sheet: Sheet, selection: Selection, stage: Stage, view: int) -> Markup:
    name = stage.name.capitalize()
    return maps.order_map(
        sheet, "", selection, stage, f"{name} tokens, numbered in the order of choice.", view, veil=False
    )


def _key(cases: Sequence[Case]) -> list[str]:
    found = {Stage(v).name.lower() for c in cases for s in c.shown for v in s.selection.stage.unique().tolist()}
    absorbed = any((s.selection.merged_into >= 0).any() for c in cases for s in c.shown)
    return [k for k in ("focus", "scan", "merged") if k in found] + (["absorbed"] if absorbed else [])


def _first(case: Case) -> Image.Image:
    return case.image if isinstance(case.image, Image.Image) else case.image[0]
