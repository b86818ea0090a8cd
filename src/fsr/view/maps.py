"""SVG maps of one picture: the picture itself, a score as colours, tokens with outlines and ranks, merge arrows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from fsr.drawing.palette import HEAT, INKS, Role
from fsr.drawing.panels import roles
from fsr.tokens import Selection, Stage
from fsr.view.canvas import WIDTH, Canvas, TokenBox
from fsr.view.html import Markup, join, number, tag

__all__ = ["arrows", "heat", "kept_map", "order_map", "picture_defs", "plain"]


def picture_defs(canvas: Canvas, uris: Sequence[str], prefix: str) -> Markup:
    """The pictures of a canvas, once, for every map to use: each a thousand units wide."""
    images = [
        tag("image", id=f"{prefix}p{i}", href=uri, width=WIDTH, height=WIDTH * p.height / p.width)
        for i, (uri, p) in enumerate(zip(uris, canvas.pictures))
    ]
    return tag("svg", tag("defs", images), width=0, height=0, cls="defs", aria_hidden="true")


def plain(canvas: Canvas, prefix: str, label: str) -> Markup:
    """Only the picture (and the titles of its panels)."""
    return _svg(canvas, prefix, label, (), None)


def heat(canvas: Canvas, prefix: str, scores: Sequence[float], label: str, view: int | None = None) -> Markup:
    """A score of all N tokens as colours from dark (lowest) to bright (highest) over the faint grey picture."""
    values = {row: scores[row] for row in canvas.boxes}
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    width = high - low
    levels: dict[int, list[TokenBox]] = {}
    for row, value in values.items():
        share = (value - low) / width if width > 0 else 1.0
        levels.setdefault(round(share * (len(HEAT) - 1)), []).append(canvas.boxes[row])
    marks = [tag("path", d=_squares(spots), fill=HEAT[level], opacity=0.86) for level, spots in sorted(levels.items())]
    return _svg(canvas, prefix, label, tag("g", marks, shape_rendering="crispEdges"), view, cls="map heat")


def kept_map(canvas: Canvas, prefix: str, selection: Selection, label: str, view: int | None = None) -> Markup:
    """The final K tokens: outlined by stage, the rest dim, absorbed tokens dotted. Each kept token is one element."""
    became = roles(selection)
    kept = [r for r in selection.rows.tolist() if r in canvas.boxes]
    faint = [i for i, role in enumerate(became) if role == "absorbed" and i in canvas.boxes]
    marks = [_dim(canvas, kept)]
    if faint:
        marks.append(tag("path", d=_squares([canvas.boxes[r] for r in faint], inset=0.04), cls="absorbed"))
    marks += [_outline(canvas.boxes[r], became[r], r) for r in _painting_order(kept, became)]
    return _svg(canvas, prefix, label, marks, view)


def order_map(
    canvas: Canvas,
    prefix: str,
    selection: Selection,
    stage: Stage,
    label: str,
    view: int | None = None,
    veil: bool = True,
) -> Markup:
    """The tokens of one stage with the number of the step that chose them (from 1); other kept tokens pale, or dim."""
    became = roles(selection)
    rank = dict(zip(selection.rows.tolist(), selection.order.tolist()))
    mine = [r for r, s in zip(selection.rows.tolist(), selection.stage.tolist()) if s == stage and r in canvas.boxes]
    others = [r for r in rank if veil and r not in set(mine) and r in canvas.boxes]
    marks = [_dim(canvas, [*mine, *others])]
    if others:
        marks.append(tag("path", d=_squares([canvas.boxes[r] for r in others]), cls="veil"))
    first = min((rank[r] for r in mine), default=0)
    marks += [_outline(canvas.boxes[r], became[r], None) for r in mine]
    marks.append(join(_numeral(canvas.boxes[r], rank[r] - first + 1) for r in mine))
    return _svg(canvas, prefix, label, marks, view)


def arrows(canvas: Canvas, prefix: str, selection: Selection, label: str, view: int | None = None) -> Markup:
    """An arrow from every merged token to the anchor that absorbed it."""
    became = roles(selection)
    merged = [(i, a) for i, a in enumerate(selection.merged_into.tolist()) if a >= 0]
    drawn = [(i, a) for i, a in merged if i in canvas.boxes and a in canvas.boxes]
    anchors = sorted({a for _, a in drawn})
    marks = [_dim(canvas, [*anchors, *(i for i, _ in drawn)])]
    marks.append(tag("path", d=_squares([canvas.boxes[i] for i, _ in drawn], inset=0.04), cls="absorbed"))
    marks += [_outline(canvas.boxes[a], became[a], None) for a in anchors]
    marks += [_arrow(canvas.boxes[i], canvas.boxes[a]) for i, a in drawn]
    return _svg(canvas, prefix, label, marks, view)


# ----------------------------------------------------------------------------------------------------------------------


def _svg(
    canvas: Canvas, prefix: str, label: str, marks: Iterable[Markup] | Markup, view: int | None, cls: str = "map"
) -> Markup:
    """One map: pictures, titles, marks and the pointer's frame. Maps with a `view` can be walked by keyboard."""
    backs = []
    for p in canvas.placed:
        move = f"translate({number(p.x)} {number(p.y)}) scale({p.w / WIDTH:.4f})"
        backs.append(tag("use", href=f"#{prefix}p{p.picture}", transform=move, cls="back"))
        if p.title:
            backs.append(tag("text", p.title, x=p.x, y=p.y - 10, cls="title"))
    cursor = tag("rect", cls="cursor", x=0, y=0, width=0, height=0) if view is not None else None
    return tag(
        "svg",
        *backs,
        marks if isinstance(marks, Markup) else join(marks),
        cursor,
        viewBox=f"0 0 {number(WIDTH)} {number(canvas.height)}",
        role="img",
        aria_label=label,
        cls=cls,
        tabindex=0 if view is not None else None,
        data_view=view,
    )


def _squares(spots: Iterable[TokenBox], inset: float = 0.0) -> str:
    parts = []
    for s in spots:
        dx, dy = inset * s.w, inset * s.h
        # Edges are rounded, not widths: neighbours must share them, or hairlines shine through.
        x0, x1 = round(s.x + dx, 1), round(s.x + s.w - dx, 1)
        y0, y1 = round(s.y + dy, 1), round(s.y + s.h - dy, 1)
        w, h = number(x1 - x0), number(y1 - y0)
        parts.append(f"M{number(x0)} {number(y0)}h{w}v{h}h-{w}z")
    return "".join(parts)


def _dim(canvas: Canvas, bright: Collection[int]) -> Markup:
    """Everything but the given tokens under a grey veil."""
    panels = _squares(TokenBox(p.x, p.y, p.w, p.h) for p in canvas.placed)
    holes = _squares(canvas.boxes[r] for r in bright)
    return tag("path", d=panels + holes, cls="dim", fill_rule="evenodd", shape_rendering="crispEdges")


def _painting_order(rows: Sequence[int], became: Sequence[Role]) -> list[int]:
    """Focus last, so that its outlines lie on top."""
    return sorted(rows, key=lambda r: became[r] == "focus")


def _outline(box: TokenBox, role: Role, row: int | None) -> Markup:
    """One token's frame, wholly inside it; a white line under dashes and dots. `row` becomes data-token."""
    if role == "whole":
        return tag("rect", x=box.x, y=box.y, width=box.w, height=box.h, fill="none", data_token=row)
    line = max(1.2, min(box.w, box.h) / 11)
    inset = dict(x=box.x + line / 2, y=box.y + line / 2, width=box.w - line, height=box.h - line)
    dash = {"solid": None, "dashed": f"{number(2.6 * line)} {number(1.7 * line)}", "dotted": f"0 {number(1.7 * line)}"}
    ink = INKS[role]
    under = None if ink.line == "solid" else tag("rect", **inset, cls="under", stroke_width=line)
    frame = tag("rect", **inset, cls=role, stroke_width=line, stroke_dasharray=dash[ink.line], data_token=row)
    return join([under, frame])


def _numeral(box: TokenBox, value: int) -> Markup | None:
    """A rank inside its token, if it is large enough to be read."""
    size = 0.44 * min(box.w, box.h)
    if size < 9:
        return None
    x, y = box.center
    return tag("text", value, x=x, y=y + 0.36 * size, font_size=size, cls="rank")


def _arrow(start: TokenBox, end: TokenBox) -> Markup:
    """From the middle of one token to the edge of the middle of another, with a small head."""
    (x0, y0), (x1, y1) = start.center, end.center
    far = math.hypot(x1 - x0, y1 - y0) or 1.0
    head = max(5.0, 0.2 * min(start.w, start.h))
    ux, uy = (x1 - x0) / far, (y1 - y0) / far
    bx, by = x1 - head * ux, y1 - head * uy
    tip = f"M{number(x1)} {number(y1)}L{number(bx - 0.55 * head * uy)} {number(by + 0.55 * head * ux)}"
    tip += f"L{number(bx + 0.55 * head * uy)} {number(by - 0.55 * head * ux)}z"
    shaft = f"M{number(x0)} {number(y0)}L{number(bx)} {number(by)}"
    width = max(1.5, head / 5)
    parts: list[Mapping[str, object]] = [
        dict(d=shaft, cls="shaft halo", stroke_width=2.6 * width),
        dict(d=shaft, cls="shaft", stroke_width=width),
    ]
    return join(
        [
            *(tag("path", **p) for p in parts),
            tag("circle", cx=x0, cy=y0, r=0.3 * head, cls="tip"),
            tag("path", d=tip, cls="tip"),
        ]
    )
