"""Pictures for papers and slides: cells with captions in rows, and the report's maps and selections as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from fsr.drawing.kept_tokens import draw
from fsr.drawing.palette import HEAT, rgb
from fsr.drawing.panels import frame_picture, panels, pixel_box
from fsr.view.comparison import Comparison

__all__ = ["Cell", "compose", "heat_picture", "report_png"]

TALLEST = 3
INK, SOFT, PAPER = (34, 38, 43), (91, 99, 109), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """A picture with a title in front of its caption."""

    picture: Image.Image
    title: str
    caption: str


def compose(rows: Sequence[Sequence[Cell]], width: int, heading: str = "") -> Image.Image:
    """Cells of equal width in rows, each caption wrapped under its picture, on white. A picture taller than `TALLEST`
    times its width is drawn narrower."""
    gap, size = max(10, width // 24), max(12, width // 24)
    title, text = ImageFont.load_default(size=size), ImageFont.load_default(size=round(0.88 * size))
    columns = max(len(row) for row in rows)
    lines = [[_wrap(c.title, title, width) for c in row] for row in rows]
    words = [[_wrap(c.caption, text, width) for c in row] for row in rows]
    scales = [[min(width / c.picture.width, TALLEST * width / c.picture.height) for c in row] for row in rows]
    heights = [
        [max(1, round(c.picture.height * scales[r][i])) for i, c in enumerate(row)] for r, row in enumerate(rows)
    ]
    step = round(1.35 * size)
    tall = [
        max(heights[r][c] + gap // 2 + step * (len(lines[r][c]) + len(words[r][c])) for c in range(len(row)))
        for r, row in enumerate(rows)
    ]
    head = _wrap(heading, ImageFont.load_default(size=round(1.5 * size)), columns * (width + gap)) if heading else []
    top = gap + len(head) * 2 * size + (gap if head else 0)
    page = Image.new("RGB", (columns * (width + gap) + gap, top + sum(tall) + gap * len(rows)), PAPER)
    pen = ImageDraw.Draw(page)
    for n, line in enumerate(head):
        pen.text((gap, gap + 2 * n * size), line, fill=INK, font=ImageFont.load_default(size=round(1.5 * size)))
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            x, y = gap + c * (width + gap), top
            smooth = Image.Resampling.LANCZOS if cell.picture.width > width else Image.Resampling.BICUBIC
            wide = max(1, round(cell.picture.width * scales[r][c]))
            drawn = cell.picture.convert("RGB").resize((wide, heights[r][c]), smooth)
            page.paste(drawn, (x + (width - wide) // 2, y))
            y += heights[r][c] + gap // 2
            for font, fill, part in ((title, INK, lines[r][c]), (text, SOFT, words[r][c])):
                for line in part:
                    pen.text((x, y), line, fill=fill, font=font)
                    y += step
        top += tall[r] + gap
    return page


def report_png(comparison: Comparison, cell: int = 480) -> Image.Image:
    """The picture and its score maps in one row, then a row for each budget with all methods."""
    run = comparison.primary.selection
    first = comparison.image if isinstance(comparison.image, Image.Image) else comparison.image[0]
    top = [Cell(first, "Picture", f"all {run.total} tokens: {comparison.unpruned.text}")]
    for name in ("saliency", "relevance", "priority"):
        values = run.priority if name == "priority" else comparison.score(name)
        if values is not None:
            heat = heat_picture(comparison, values.tolist(), cell)
            top.append(Cell(heat, name.capitalize(), _told(comparison, name)))
    budgets: dict[int, list[Cell]] = {}
    for s in comparison.runs:
        drawn = draw(comparison.image, s.selection, cell, legend=False)
        budgets.setdefault(s.keep, []).append(Cell(drawn, f"{s.name}, {s.keep} tokens", s.text))
    columns = max(4, len(top))
    rows = [top, *(cells[i : i + columns] for cells in budgets.values() for i in range(0, len(cells), columns))]
    return compose(rows, cell, f"“{comparison.question}”")


def _told(comparison: Comparison, name: str) -> str:
    """Whose score it is: methods may read relevance from different sources."""
    run = comparison.primary if name == "priority" else comparison.read_by(name)
    if run is None or name == "saliency":
        return ""
    return f"of {run.name}" + (f", from {run.relevance}" if name == "relevance" else "")


def heat_picture(comparison: Comparison, values: Sequence[float], size: int) -> Image.Image:
    """A score as colours over the first panel (the whole picture, or the first frame)."""
    view = panels(comparison.unpruned.selection.geometry)[0]
    picture = frame_picture(comparison.image, view.frame, 1 + view.frame).convert("L").convert("RGB")
    scale = size / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    mine = [values[r] for r in view.rows]
    low, width = min(mine), (max(mine) - min(mine)) or 1.0
    colors = Image.new("RGB", picture.size)
    pen = ImageDraw.Draw(colors)
    for value, box in zip(mine, view.boxes):
        x0, y0, x1, y1 = pixel_box(box, *picture.size)
        level = round((value - low) / width * (len(HEAT) - 1))
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=rgb(HEAT[level]))
    return Image.blend(picture, colors, 0.86)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
