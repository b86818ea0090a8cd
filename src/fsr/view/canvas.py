"""All panels of one picture (raster, tiles, frames) laid out on one canvas, a thousand units wide."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from fsr.drawing.panels import Panel, frame_picture, panels
from fsr.tokens import Geometry

__all__ = ["WIDTH", "Canvas", "PlacedPanel", "TokenBox", "data_uri", "lay_out", "token_name"]

WIDTH = 1000.0
GAP = 16.0
TITLE = 34.0


@dataclass(frozen=True)
class TokenBox:
    """Where one token lies on the canvas."""

    x: float
    y: float
    w: float
    h: float

    @property
    def center(self) -> tuple[float, float]:
        """Its middle."""
        return self.x + self.w / 2, self.y + self.h / 2


@dataclass(frozen=True)
class PlacedPanel:
    """One panel on the canvas: its picture (an index into `Canvas.pictures`), title and rectangle."""

    picture: int
    title: str
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True)
class Canvas:
    """pictures: each once. placed: panels. boxes and names: by row number; structural rows are missing."""

    pictures: tuple[Image.Image, ...]
    placed: tuple[PlacedPanel, ...]
    boxes: dict[int, TokenBox]
    names: dict[int, str]
    height: float


def lay_out(image: Image.Image | Sequence[Image.Image], geometry: Geometry | None) -> Canvas:
    """Place panels: one fills the canvas; a picture with tiles is a third to the tiles' two; clips form a grid.

    Raises:
        UsageError: tokens without geometry, or no picture.
    """
    views = panels(geometry)
    frames = 1 + max((v.frame for v in views), default=0)
    used = [frame_picture(image, v.frame, frames) for v in views]
    pictures: list[Image.Image] = []
    for picture in used:
        if not any(picture is p for p in pictures):
            pictures.append(picture)
    placed: list[PlacedPanel] = []
    boxes: dict[int, TokenBox] = {}
    names: dict[int, str] = {}
    top, i = 0.0, 0
    columns = _columns(len(views))
    while i < len(views):
        line = list(zip(views[i : i + columns], used[i : i + columns]))
        shares = [0.34, 0.66] if _is_tiled(views) else [1 / columns] * len(line)
        room = WIDTH - GAP * (columns - 1)
        title = TITLE if any(v.title for v, _ in line) else 0.0
        left, bottom = 0.0, top
        for (view, picture), share in zip(line, shares):
            w = room * share
            h = w * picture.height / picture.width
            which = next(n for n, p in enumerate(pictures) if p is picture)
            placed.append(PlacedPanel(which, view.title, left, top + title, w, h))
            for row, (x0, y0, x1, y1) in zip(view.rows, view.boxes):
                boxes[row] = TokenBox(left + x0 * w, top + title + y0 * h, (x1 - x0) * w, (y1 - y0) * h)
            names |= _names(view)
            left += w + GAP
            bottom = max(bottom, top + title + h)
        top, i = bottom + GAP, i + columns
    return Canvas(tuple(pictures), tuple(placed), boxes, names, max(top - GAP, 1.0))


def token_name(canvas: Canvas, row: int) -> str:
    """ "row 3, column 4" where the token is part of a raster."""
    return canvas.names.get(row, f"token {row}")


def data_uri(picture: Image.Image, longest: int = 960) -> str:
    """The picture inside the page: small ones as they are (PNG), photographs scaled down (JPEG)."""
    scale = longest / max(picture.size)
    small = picture.convert("RGB")
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        small = small.resize(size, Image.Resampling.LANCZOS)
    out, kind = io.BytesIO(), "png" if max(small.size) <= 200 else "jpeg"
    small.save(out, kind, quality=88, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _is_tiled(views: Sequence[Panel]) -> bool:
    return len(views) == 2 and views[0].frame == views[1].frame


def _columns(count: int) -> int:
    return count if count <= 2 else math.ceil(math.sqrt(count * 1.3))


def _names(view: Panel) -> dict[int, str]:
    """Rows and columns by distinct box edges; boxes that only nearly line up (unpadded tiles) count as lined up."""
    lines = _levels([b[1] for b in view.boxes])
    columns = _levels([b[0] for b in view.boxes])
    prefix = f"{view.title}, " if view.title else ""
    return {
        row: f"{prefix}row {lines[round(b[1], 3)]}, column {columns[round(b[0], 3)]}"
        for row, b in zip(view.rows, view.boxes)
    }


def _levels(values: Sequence[float]) -> dict[float, int]:
    return {v: n + 1 for n, v in enumerate(sorted({round(v, 3) for v in values}))}
