"""Where tokens lie in the picture and what became of each: all that pictures and reports read from a `Selection`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from fsr.drawing.palette import Role
from fsr.errors import UsageError
from fsr.tokens import CenterCrop, Geometry, Selection, Stage

__all__ = ["Panel", "frame_picture", "in_picture", "panels", "pixel_box", "roles"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Panel:
    """Tokens that do not overlap: one raster, all tiles of a picture, or one frame of a clip.

    title: empty where there is only one panel. frame: of the video (0 for images). rows: numbers among the N tokens.
    boxes: (x0, y0, x1, y1) of each, as shares of width and height.
    """

    title: str
    frame: int
    rows: tuple[int, ...]
    boxes: tuple[Box, ...]


def panels(geometry: Geometry | None) -> list[Panel]:
    """The panels of one image or clip. A tiled picture gives two: the view of the whole (tile 0), and the tiles.

    Structural rows lie nowhere and are left out.

    Raises:
        UsageError: the tokens carry no geometry (a method that was run on bare tensors).
    """
    if geometry is None:
        raise UsageError(
            "these tokens have no place in a picture: give VisualTokens(geometry=Geometry.raster(rows, cols))."
        )
    boxes = geometry.boxes.detach().float().cpu()
    patch = ~boxes.isnan().any(-1)
    tile, frame = geometry.tile.cpu(), geometry.frame.cpu()
    found = []
    frames = frame[patch].unique().tolist()
    for f in frames:
        here = patch & (frame == f)
        tiles = sorted(tile[here].unique().tolist())
        split = [("", here)]
        if len(tiles) > 1 and tiles[0] == 0:
            crops = len(tiles) - 1
            split = [("whole picture", here & (tile == 0)), (f"{crops} tile{'s'[: crops != 1]}", here & (tile > 0))]
        for title, mask in split:
            rows = mask.nonzero()[:, 0].tolist()
            name = ", ".join(part for part in (f"frame {f}" if len(frames) > 1 else "", title) if part)
            found.append(Panel(name, int(f), tuple(rows), tuple(_box(b) for b in boxes[rows].tolist())))
    return found


def roles(selection: Selection) -> list[Role]:
    """What became of each of the N tokens."""
    kept = dict(zip(selection.rows.tolist(), selection.stage.tolist()))
    absorbed = selection.merged_into.tolist()
    nowhere = [False] * selection.total
    if selection.geometry is not None:
        nowhere = selection.geometry.boxes.isnan().any(-1).tolist()
    names: dict[int, Role] = {
        Stage.FOCUS: "focus",
        Stage.SCAN: "scan",
        Stage.MERGED: "merged",
        Stage.WHOLE: "whole",
    }
    result: list[Role] = []
    for i in range(selection.total):
        if nowhere[i]:
            result.append("structural")
        elif i in kept:
            result.append(names[kept[i]])
        else:
            result.append("absorbed" if absorbed[i] >= 0 else "dropped")
    return result


def frame_picture(pictures: Image.Image | Sequence[Image.Image], frame: int, frames: int) -> Image.Image:
    """The picture behind frame `frame` of `frames`: models may sample or pair the frames they are given.

    Raises:
        UsageError: no picture at all.
    """
    if isinstance(pictures, Image.Image):
        return pictures
    if not pictures:
        raise UsageError("no picture to draw on: give one image, or the frames of the clip.")
    return pictures[min(len(pictures) - 1, int((frame + 0.5) * len(pictures) / max(frames, 1)))]


def in_picture(panel: Panel, crop: CenterCrop | None, size: tuple[int, int]) -> Panel:
    """The panel on the user's picture of this size (width, height); tokens of mere padding are left out."""
    if crop is None:
        return panel
    x0, y0, x1, y1 = crop.window(*size)
    w, h = x1 - x0, y1 - y0
    boxes = [(x0 + a * w, y0 + b * h, x0 + c * w, y0 + d * h) for a, b, c, d in panel.boxes]
    there = [i for i, (a, b, c, d) in enumerate(boxes) if a < 1 and b < 1 and c > 0 and d > 0]
    return replace(panel, rows=tuple(panel.rows[i] for i in there), boxes=tuple(boxes[i] for i in there))


def pixel_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in whole pixels, right and bottom exclusive, at least one pixel wide and high."""
    x0, y0 = (max(0, min(round(v * n), n - 1)) for v, n in ((box[0], width), (box[1], height)))
    return x0, y0, max(x0 + 1, min(round(box[2] * width), width)), max(y0 + 1, min(round(box[3] * height), height))


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1
