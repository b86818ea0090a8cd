"""`fsr.drawing.kept_tokens`: outlines lie on the tokens they stand for, kept tokens stay bright, the rest is dimmed."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from fsr.drawing import draw
from fsr.drawing.palette import INKS, rgb
from fsr.drawing.panels import panels, pixel_box, roles
from fsr.errors import UsageError
from fsr.methods import FSR
from fsr.tokens import Geometry, Selection, Stage, VisualTokens

YELLOW = (250, 220, 40)


def selection(
    geometry: Geometry | None, kept: dict[int, Stage], merged: dict[int, int] | None = None, total: int = 0
) -> Selection:
    rows = torch.tensor(sorted(kept))
    total = total or len(geometry.boxes)
    into = torch.full((total,), -1)
    for source, anchor in (merged or {}).items():
        into[source] = anchor
    return Selection(
        rows=rows,
        features=torch.zeros(len(rows), 2),
        stage=torch.tensor([int(kept[r]) for r in rows.tolist()]),
        total=total,
        order=torch.arange(len(rows)),
        merged_into=into,
        geometry=geometry,
        method="fsr",
    )


def tiled() -> Geometry:
    """A 2 x 2 view of the whole and two tiles side by side, each 2 x 2 and closed by a structural row."""
    whole = Geometry.raster(2, 2)
    half = whole.boxes * torch.tensor([0.5, 1.0, 0.5, 1.0])
    newline = torch.full((1, 4), math.nan)
    boxes = torch.cat([whole.boxes, half, newline, half + torch.tensor([0.5, 0.0, 0.5, 0.0]), newline])
    tile = torch.tensor([0] * 4 + [1] * 4 + [-1] + [2] * 4 + [-1])
    return Geometry(boxes, tile, torch.zeros(14, dtype=torch.long))


def test_outlines_and_dimming_are_on_their_tokens():
    chosen = selection(Geometry.raster(4, 4), {5: Stage.FOCUS, 10: Stage.SCAN}, {0: 10})
    picture = draw(Image.new("RGB", (64, 64), YELLOW), chosen, size=400, legend=False)
    assert picture.size == (400, 400)

    def at(row: int, dx: float, dy: float) -> tuple[int, int, int]:
        return picture.getpixel((int(100 * (row % 4 + dx)), int(100 * (row // 4 + dy))))

    assert at(5, 0.5, 0.03) == at(5, 0.97, 0.5) == rgb(INKS["focus"].color)
    assert at(10, 0.01, 0.01) == at(10, 0.98, 0.98) == rgb(INKS["scan"].color)
    edge = {picture.getpixel((200 + x, 203)) for x in range(100)}
    assert {rgb(INKS["scan"].color), (255, 255, 255)} == edge  # dashed: told apart without colour
    assert at(5, 0.5, 0.5) == at(10, 0.5, 0.5) == YELLOW
    thin = {picture.getpixel((x, 0)) for x in range(100)}
    assert rgb(INKS["absorbed"].color) in thin and rgb(INKS["focus"].color) not in thin
    dimmed = at(15, 0.5, 0.5)
    assert dimmed != YELLOW and max(dimmed) - min(dimmed) < 0.4 * (max(YELLOW) - min(YELLOW))


def test_outline_never_leaves_its_token():
    chosen = selection(Geometry.raster(24, 24), {24 * 7 + 9: Stage.FOCUS})
    picture = draw(Image.new("RGB", (336, 336)), chosen, size=500, legend=False)
    x0, y0, x1, y1 = pixel_box(tuple(chosen.geometry.boxes[24 * 7 + 9].tolist()), 500, 500)
    ink = [(x, y) for x in range(500) for y in range(500) if picture.getpixel((x, y)) == rgb(INKS["focus"].color)]
    assert (min(x for x, _ in ink), max(x for x, _ in ink)) == (x0, x1 - 1)
    assert (min(y for _, y in ink), max(y for _, y in ink)) == (y0, y1 - 1)


def test_tiles_are_drawn_at_their_places_and_structural_rows_nowhere():
    geometry = tiled()
    whole, tiles = panels(geometry)
    assert (whole.title, tiles.title) == ("whole picture", "2 tiles")
    assert whole.rows == (0, 1, 2, 3) and tiles.rows == (4, 5, 6, 7, 9, 10, 11, 12)
    chosen = selection(geometry, {1: Stage.FOCUS, 11: Stage.FOCUS})
    assert [i for i, r in enumerate(roles(chosen)) if r == "structural"] == [8, 13]
    picture = draw(Image.new("RGB", (400, 200), YELLOW), chosen, size=400, legend=False)
    gap, top = picture.width - 800, picture.height - 200
    assert picture.getpixel((300, top + 2)) == rgb(INKS["focus"].color)  # row 1: upper right of the whole
    assert picture.getpixel((400 + gap + 250, top + 150)) == YELLOW  # row 11: lower left of the right tile
    assert picture.getpixel((400 + gap + 350, top + 150)) != YELLOW


def test_frames_use_their_own_picture():
    one = Geometry.raster(2, 2)
    geometry = Geometry(one.boxes.repeat(2, 1), torch.zeros(8, dtype=torch.long), torch.arange(2).repeat_interleave(4))
    frames = [Image.new("RGB", (50, 50), c) for c in (YELLOW, YELLOW, "blue", "blue")]  # the model pairs frames
    chosen = selection(geometry, {0: Stage.FOCUS, 4: Stage.FOCUS})
    picture = draw(frames, chosen, size=100, legend=False)
    assert picture.getpixel((25, picture.height - 75)) == YELLOW
    assert picture.getpixel((picture.width - 75, picture.height - 75)) == (0, 0, 255)


def test_legend_counts_and_whole_images():
    tokens = VisualTokens(torch.eye(16), torch.rand(16), torch.rand(16), Geometry.raster(4, 4))
    (all_kept,) = FSR(keep=16)([tokens])
    picture = draw(Image.new("RGB", (64, 64), YELLOW), all_kept, size=128)
    assert picture.height > 128
    assert picture.crop((0, 0, 128, 128)).getcolors() == [(128 * 128, YELLOW)]


def test_without_places_there_is_nothing_to_draw():
    with pytest.raises(UsageError, match="no place"):
        draw(Image.new("RGB", (8, 8)), selection(None, {0: Stage.FOCUS}, total=4))
    with pytest.raises(UsageError, match="no picture"):
        draw([], selection(Geometry.raster(2, 2), {0: Stage.FOCUS}))
