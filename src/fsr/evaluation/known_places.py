"""Pictures with known places, what `fsr calibrate` measures relevance on: embedded scenes, or a folder with boxes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fsr.asking.images import open_image
from fsr.errors import UsageError
from fsr.evaluation.question_set import QuestionSet

__all__ = ["KnownPlace", "PlaceRow", "folder_places", "folder_rows", "scene_places"]

LISTS = ("places.json", "places.csv")
CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class KnownPlace:
    """A text about a picture, and where in the picture lies what it asks for.

    boxes: float [M, 4], (x0, y0, x1, y1) as shares of width and height.
    """

    image: Image.Image
    text: str
    boxes: Tensor

    def inside(self, tokens: Tensor) -> Tensor:
        """Bool [N]: tokens (boxes [N, 4], NaN where a row is no patch) whose centre lies in one of the boxes."""
        x, y = ((tokens[:, i] + tokens[:, i + 2])[:, None] / 2 for i in (0, 1))
        x0, y0, x1, y1 = self.boxes.to(tokens).unbind(-1)
        return ((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).any(1)


def scene_places(questions: QuestionSet) -> Iterator[KnownPlace]:
    """The questions of a set that are about something that lies somewhere (not about the ground or absent things)."""
    for item in questions.items:
        owner = torch.from_numpy(questions.scenes[item.scene].owner)
        rows, columns = torch.isin(owner, owner.new_tensor(item.question.targets)).nonzero().unbind(-1)
        if len(rows):
            high, wide = owner.shape
            cells = torch.stack([columns / wide, rows / high, (columns + 1) / wide, (rows + 1) / high], -1)
            yield KnownPlace(questions.picture(item.scene), item.question.text, cells)


@dataclass(frozen=True)
class PlaceRow:
    """One row of a folder's list: a picture's file, a text about it, (x0, y0, x1, y1) in pixels, and the row's name in
    messages."""

    image: Path
    text: str
    box: tuple[float, float, float, float]
    name: str


def folder_rows(folder: str | Path) -> list[PlaceRow]:
    """What `places.json` or `places.csv` in a folder says, before any picture is opened.

    JSON: a list of {"image": file, "text": words, "box": [x0, y0, x1, y1]}; CSV: a header and the columns image, text,
    x0, y0, x1, y1. Boxes count pixels of the picture as it is shown (turned as its camera says).

    Raises:
        UsageError: no list, or a row that lacks something or names no file.
    """
    found = next((f for name in LISTS if (f := Path(folder) / name).is_file()), None)
    if found is None:
        raise UsageError(f"{folder} holds no {' or '.join(LISTS)}: write one row per picture (image, text, box).")
    rows = []
    for number, row in enumerate(_rows(found), 1):
        name = f"{found}, row {number}"
        try:
            image, text = found.parent / str(row["image"]), str(row["text"]).strip()
            box = [float(v) for v in (row["box"] if "box" in row else [row[c] for c in CORNERS])]
            x0, y0, x1, y1 = box
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{name}: give image, text and a box of four numbers.") from error
        if not text or not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise UsageError(f"{name}: the text or the box {box} is empty.")
        if not image.is_file():
            raise UsageError(f"{name}: there is no picture {image}.")
        rows.append(PlaceRow(image, text, (x0, y0, x1, y1), name))
    return rows


def folder_places(rows: Iterable[PlaceRow]) -> Iterator[KnownPlace]:
    """The rows of `folder_rows` with their pictures, opened one by one.

    Raises:
        UsageError: a box outside its picture. PictureError: a file that is no picture.
    """
    for row in rows:
        image = open_image(str(row.image))
        (wide, high), (x0, y0, x1, y1) = image.size, row.box
        if x1 > wide or y1 > high:
            raise UsageError(f"{row.name}: the box {list(row.box)} is not inside the picture's {wide} x {high} pixels.")
        yield KnownPlace(image, row.text, torch.tensor([[x0 / wide, y0 / high, x1 / wide, y1 / high]]))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise UsageError(f"{path} holds no list of rows: see `fsr calibrate --help`.")
    return rows
