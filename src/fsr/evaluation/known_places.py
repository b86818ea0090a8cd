"""Pictures with known places, what `fsr calibrate` measures relevance on: embedded scenes, or a folder with boxes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fsr.asking.images import open_image
from fsr.errors import UsageError
from fsr.evaluation.question_set import QuestionSet

__all__ = ["KnownPlace", "folder_places", "scene_places"]

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


def folder_places(folder: str | Path) -> Iterator[KnownPlace]:
    """A folder of pictures with `places.json` or `places.csv` beside them.

    JSON: a list of {"image": file, "text": words, "box": [x0, y0, x1, y1]}; CSV: a header and the columns image, text,
    x0, y0, x1, y1. Boxes count pixels of the picture as it is shown (turned as its camera says).

    Raises:
        UsageError: no list, a row that lacks something, or a box that is empty or outside its picture.
    """
    found = next((f for name in LISTS if (f := Path(folder) / name).is_file()), None)
    if found is None:
        raise UsageError(f"{folder} holds no {' or '.join(LISTS)}: write one row per picture (image, text, box).")
    for number, row in enumerate(_rows(found), 1):
        try:
            name, text = str(row["image"]), str(row["text"]).strip()
            box = [float(v) for v in (row["box"] if "box" in row else [row[c] for c in CORNERS])]
            x0, y0, x1, y1 = box
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{found}, row {number}: give image, text and a box of four numbers.") from error
        image = open_image(str(found.parent / name))
        wide, high = image.size
        if not text or not (0 <= x0 < x1 <= wide and 0 <= y0 < y1 <= high):
            raise UsageError(
                f"{found}, row {number}: the text is empty, or the box {box} is not inside its {wide} x {high} pixels."
            )
        yield KnownPlace(image, text, torch.tensor([[x0 / wide, y0 / high, x1 / wide, y1 / high]]))


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
