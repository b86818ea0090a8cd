"""What was kept: Focus in vermilion, solid; Scan in blue, dashed; absorbed tokens thin, white, dotted; the rest dim."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from fsr.drawing.palette import INKS, Ink, Role, rgb
from fsr.drawing.panels import Panel, frame_picture, in_picture, panels, pixel_box, roles
from fsr.tokens import Geometry, Selection

__all__ = ["beside", "blank", "draw", "draw_panel"]

# Share of the original that is left of tokens that were not kept; the rest is this grey.
DIM = {"dropped": 0.22, "structural": 0.22, "absorbed": 0.45}
GREY = (128, 128, 132)
PAPER = (255, 255, 255)
TEXT = (40, 42, 48)


def draw(
    image: Image.Image | Sequence[Image.Image], selection: Selection, size: int = 720, *, legend: bool = True
) -> Image.Image:
    """The picture with its kept tokens, as RGB.

    A tiled picture is drawn twice (as a whole, and by tiles), a clip frame by frame.

    Args:
        image: what the processor was given; for a clip its frames.
        selection: what a method kept; its `geometry` says where tokens lie, and what the processor cut off (dim here).
        size: longer side of one panel in pixels (clips of many frames share it).
        legend: one line underneath that says how many of each there are.

    Raises:
        UsageError: a selection without geometry, or no picture.
    """
    views = panels(selection.geometry)
    became = roles(selection)
    frames = 1 + max((v.frame for v in views), default=0)
    columns = _columns(len(views))
    side = max(96, round(size * (2 if columns > 1 else 1) / columns)) if len(views) > 2 else size
    gap = max(6, side // 40)
    crop = None if selection.geometry is None else selection.geometry.crop
    shown = [(frame_picture(image, v.frame, frames), v) for v in views]
    drawn = [draw_panel(picture, in_picture(v, crop, picture.size), became, side) for picture, v in shown]
    caption = max(11, side // 32) if any(v.title for v in views) else 0
    width, height = max(p.width for p in drawn), max(p.height for p in drawn) + (caption * 3 // 2)
    lines = -(-len(drawn) // columns)
    bar = _legend(selection, became, columns * width + (columns - 1) * gap) if legend else None
    sheet = Image.new(
        "RGB",
        (columns * width + (columns - 1) * gap, lines * height + (lines - 1) * gap + (bar.height if bar else 0)),
        PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    for i, (view, panel) in enumerate(zip(views, drawn)):
        x, y = (i % columns) * (width + gap), (i // columns) * (height + gap)
        sheet.paste(panel, (x, y + caption * 3 // 2))
        if view.title:
            pen.text((x, y), view.title, fill=TEXT, font=ImageFont.load_default(size=caption))
    if bar:
        sheet.paste(bar, (0, sheet.height - bar.height))
    return sheet


def beside(drawn: Sequence[Image.Image]) -> Image.Image:
    """Several drawings in one row, tops aligned."""
    gap = max(p.width for p in drawn) // 40
    sheet = Image.new("RGB", (sum(p.width + gap for p in drawn) - gap, max(p.height for p in drawn)), PAPER)
    x = 0
    for picture in drawn:
        sheet.paste(picture, (x, 0))
        x += picture.width + gap
    return sheet


def blank(geometry: Geometry | None) -> Image.Image:
    """An even ground with the proportions of the token raster, for selections whose picture is not at hand."""
    rows, cols = geometry.grid if geometry is not None and geometry.grid else (1, 1)
    return Image.new("RGB", (48 * cols, 48 * rows), (226, 222, 212))


def draw_panel(image: Image.Image, panel: Panel, became: Sequence[Role], size: int) -> Image.Image:
    """The tokens of one panel on its picture, whose longer side gets `size` pixels. became: role of all N tokens."""
    scale = size / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    picture = image.convert("RGB").resize((width, height), smooth)
    places = [(became[row], pixel_box(box, width, height)) for row, box in zip(panel.rows, panel.boxes)]
    grey = Image.new("RGB", picture.size, GREY)
    # What no token covers (a margin that the processor cut off) is as lost as a dropped token.
    canvas = Image.blend(grey, picture, DIM["dropped"])
    for role, (x0, y0, x1, y1) in places:
        part = picture.crop((x0, y0, x1, y1))
        if role in DIM:
            part = Image.blend(grey.crop((x0, y0, x1, y1)), part, DIM[role])
        canvas.paste(part, (x0, y0))
    pen = ImageDraw.Draw(canvas)
    for wanted in ("absorbed", "merged", "scan", "focus"):
        for role, box in places:
            if role == wanted:
                _outline(pen, box, INKS[role])
    return canvas


def line_width(box: tuple[int, int, int, int], ink: Ink) -> int:
    """Pixels of an outline: a tenth of the token's shorter side at most, so that its content stays visible."""
    return max(1, round(ink.weight * min(box[2] - box[0], box[3] - box[1]) / 10))


def _outline(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], ink: Ink) -> None:
    """A rectangle wholly inside `box`: neighbours do not paint over each other. White fills the gaps of dashed ones."""
    w = line_width(box, ink)
    x0, y0, x1, y1 = box
    if min(x1 - x0, y1 - y0) < 3:
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=rgb(ink.color))
        return
    if ink.line == "solid" or ink.weight >= 1:
        pen.rectangle(
            (x0, y0, x1 - 1, y1 - 1), outline=rgb(ink.color) if ink.line == "solid" else (255, 255, 255), width=w
        )
    if ink.line == "solid":
        return
    dash = 2 * w if ink.line == "dashed" else max(2, w)
    for a, b in _dashes(x1 - x0, dash):
        pen.rectangle((x0 + a, y0, x0 + b - 1, y0 + w - 1), fill=rgb(ink.color))
        pen.rectangle((x0 + a, y1 - w, x0 + b - 1, y1 - 1), fill=rgb(ink.color))
    for a, b in _dashes(y1 - y0, dash):
        pen.rectangle((x0, y0 + a, x0 + w - 1, y0 + b - 1), fill=rgb(ink.color))
        pen.rectangle((x1 - w, y0 + a, x1 - 1, y0 + b - 1), fill=rgb(ink.color))


def _dashes(length: int, dash: int) -> Iterator[tuple[int, int]]:
    """Dashes along an edge, one at each corner, gaps two thirds as long."""
    count = max(2, round((length / dash + 2 / 3) / (5 / 3)))
    step = (length - dash) / (count - 1)
    if step < dash + 1:
        yield 0, length
        return
    for i in range(count):
        start = round(i * step)
        yield start, min(length, start + dash)


def _columns(count: int) -> int:
    """Panels side by side: up to two in a row, clips in a near-square sheet."""
    return count if count <= 2 else math.ceil(math.sqrt(count * 1.3))


def _legend(selection: Selection, became: Sequence[Role], width: int) -> Image.Image:
    """One or more lines: a swatch and a count for each role that occurs, and K of N."""
    size = max(12, min(22, width // 40))
    font = ImageFont.load_default(size=size)
    items: list[tuple[Ink | None, str]] = [
        (None, f"{selection.method or 'kept'}: {selection.kept} of {selection.total}")
    ]
    for role, style in INKS.items():
        if (count := sum(r == role for r in became)) or role in ("focus", "scan"):
            items.append((style, f"{style.label} {count}"))
    dropped = sum(r in ("dropped", "structural") for r in became)
    if dropped:
        items.append((None, f"dropped {dropped}"))
    pad, x, y, rows = size // 2, size // 2, size // 2, []
    for ink, text in items:
        need = round(font.getlength(text)) + (size + pad if ink else 0)
        if x + need > width - pad and x > pad:
            x, y = pad, y + round(1.7 * size)
        rows.append((x, y, ink, text))
        x += need + round(1.4 * size)
    bar = Image.new("RGB", (width, y + round(1.7 * size)), PAPER)
    pen = ImageDraw.Draw(bar)
    for x, y, mark, text in rows:
        if mark:
            if mark.weight < 1:  # white on the picture, so it needs a ground here
                pen.rectangle((x, y, x + size - 1, y + size - 1), fill=GREY)
            _outline(pen, (x, y, x + size, y + size), mark)
            x += size + pad
        pen.text((x, y + size / 2), text, fill=TEXT, font=font, anchor="lm")
    return bar
