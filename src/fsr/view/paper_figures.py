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
from fsr.view.canvas import Canvas, data_uri, lay_out
from fsr.view.comparison import Comparison
from fsr.view.html import Markup, join, tag
from fsr.view.page import page
from fsr.view.png import Cell, compose
from fsr.view.report import page_data
from fsr.view.tables import key

__all__ = ["Figure", "figure_page", "figure_png", "only_stage"]

Figure = Literal[1, 2]
TITLES = {1: "Same picture, two questions", 2: "Methods at the same budget"}


def figure_page(which: Figure, comparisons: Sequence[Comparison]) -> str:
    """Figure 1 or 2 as a self-contained page with the same tooltips as the report.

    Raises:
        UsageError: the comparisons do not fit the figure.
    """
    _check(which, comparisons)
    canvas = lay_out(comparisons[0].image, comparisons[0].unpruned.selection.geometry)
    rows, view = [], 0
    for comparison in comparisons:
        rows.append(_stages(comparison, canvas, view) if which == 1 else _methods(comparison, canvas, view))
        view += len(comparison.runs)
    keep = comparisons[0].runs[0].keep
    first = comparisons[0]
    lead = f"{first.model or 'The model'}, {keep} of {first.unpruned.selection.total} visual tokens kept."
    body = [
        maps.picture_defs(canvas, [data_uri(p) for p in canvas.pictures], ""),
        tag("header", tag("h1", TITLES[which]), tag("p", lead, cls="lead"), key(_key(comparisons))),
        tag("main", tag("div", rows, cls="paper")),
        tag("footer", tag("p", "Layout after Focus-Scan-Refine, arXiv 2602.05809, Figure ", which, ".")),
    ]
    return page(
        f"{TITLES[which]} · {' · '.join(c.question for c in comparisons)}", body, page_data(comparisons, canvas)
    )


def figure_png(which: Figure, comparisons: Sequence[Comparison], cell: int = 480) -> Image.Image:
    """Figure 1 or 2 as one picture; `cell` is the width of each of its columns in pixels.

    Raises:
        UsageError: the comparisons do not fit the figure.
    """
    _check(which, comparisons)
    rows = []
    for comparison in comparisons:
        if which == 1:
            s = comparison.runs[0].selection
            focus, scan = only_stage(s, Stage.FOCUS), only_stage(s, Stage.SCAN)
            row = [
                Cell(
                    _first(comparison), f"“{comparison.question}”", f"all {s.total} tokens: {comparison.unpruned.text}"
                ),
                Cell(draw(comparison.image, focus, cell, legend=False), "Focus", f"{s.n_focus} tokens, local evidence"),
                Cell(draw(comparison.image, scan, cell, legend=False), "Scan", f"{s.n_scan} tokens, global context"),
                Cell(
                    draw(comparison.image, s, cell, legend=False), "Kept", f"{s.kept} tokens: {comparison.runs[0].text}"
                ),
            ]
        else:
            row = [Cell(_first(comparison), f"“{comparison.question}”", f"all tokens: {comparison.unpruned.text}")]
            row += [
                Cell(draw(comparison.image, s.selection, cell, legend=False), s.name, s.text) for s in comparison.runs
            ]
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


def _check(which: Figure, comparisons: Sequence[Comparison]) -> None:
    if which == 1 and (
        len(comparisons) != 2 or any(not c.runs[0].selection.n_focus + c.runs[0].selection.n_scan for c in comparisons)
    ):
        raise UsageError(
            "figure 1 compares two questions, answered by a method with Focus and Scan at less than all tokens."
        )
    if which == 2 and not comparisons:
        raise UsageError("figure 2 needs a question.")
    if len({c.runs[0].keep for c in comparisons} | {s.keep for c in comparisons for s in c.runs}) > 1:
        raise UsageError("a figure compares equal budgets: give one --keep.")


def _stages(comparison: Comparison, canvas: Canvas, view: int) -> Markup:
    run = comparison.runs[0]
    s = run.selection
    cells = [
        _cell(maps.plain(canvas, "", "The picture."), "", f"With all {s.total} tokens: ", comparison.unpruned.text),
        _cell(_stage_map(canvas, s, Stage.FOCUS, view), "Focus", f"{s.n_focus} tokens, local evidence"),
        _cell(_stage_map(canvas, s, Stage.SCAN, view), "Scan", f"{s.n_scan} tokens, global context"),
        _cell(maps.kept_map(canvas, "", s, f"{s.kept} tokens kept.", view), "Kept", f"{s.kept} tokens: ", run.text),
    ]
    return _row(comparison, cells, 4)


def _methods(comparison: Comparison, canvas: Canvas, view: int) -> Markup:
    cells = [_cell(maps.plain(canvas, "", "The picture."), "", "With all tokens: ", comparison.unpruned.text)]
    for i, run in enumerate(comparison.runs):
        label = f"{run.name} keeps {run.keep} tokens."
        drawing = maps.kept_map(canvas, "", run.selection, label, view + i)
        cells.append(_cell(drawing, run.name, "", run.text))
    return _row(comparison, cells, len(cells))


def _row(comparison: Comparison, cells: Sequence[Markup], columns: int) -> Markup:
    question = tag("p", f"“{comparison.question}”", cls="q")
    return tag("section", question, tag("div", cells, cls="cols", style=f"--n:{columns}"), cls="row")


def _cell(drawing: Markup, title: str, words: str, answer: str = "") -> Markup:
    head = join([tag("strong", title), ": " if words or answer else ""]) if title else None
    return tag("figure", drawing, tag("figcaption", head, words, tag("strong", answer) if answer else None))


def _stage_map(canvas: Canvas, selection: Selection, stage: Stage, view: int) -> Markup:
    name = stage.name.capitalize()
    return maps.order_map(
        canvas, "", selection, stage, f"{name} tokens, numbered in the order of choice.", view, veil=False
    )


def _key(comparisons: Sequence[Comparison]) -> list[str]:
    found = {Stage(v).name.lower() for c in comparisons for s in c.runs for v in s.selection.stage.unique().tolist()}
    absorbed = any((s.selection.merged_into >= 0).any() for c in comparisons for s in c.runs)
    return [k for k in ("focus", "scan", "merged") if k in found] + (["absorbed"] if absorbed else [])


def _first(comparison: Comparison) -> Image.Image:
    return comparison.image if isinstance(comparison.image, Image.Image) else comparison.image[0]
