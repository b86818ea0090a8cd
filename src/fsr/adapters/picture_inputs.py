"""The vision arguments of a call cut into pictures: what an adapter's `apart` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["by_grid", "by_row"]

Parts = list[dict[str, Any]] | None


def by_grid(given: Mapping[str, Any]) -> Parts:
    """`pixel_values` [sum of t * h * w, ...] and `image_grid_thw` [n, 3]: as many rows as a picture's grid has patches.
    None if there is anything else, or nothing."""
    values, grid = given.get("pixel_values"), given.get("image_grid_thw")
    if not isinstance(values, Tensor) or not isinstance(grid, Tensor) or len(given) != 2:
        return None
    rows = grid.prod(-1).tolist()
    if sum(rows) != values.shape[0]:
        return None
    return [{"pixel_values": v, "image_grid_thw": grid[i : i + 1]} for i, v in enumerate(values.split(rows))]


def by_row(given: Mapping[str, Any]) -> Parts:
    """`pixel_values` [n, ...], one row per picture (its tiles in the second dimension), beside `image_sizes` [n, 2]
    where there are tiles. None if there is anything else, or nothing."""
    values, sizes = given.get("pixel_values"), given.get("image_sizes")
    if not isinstance(values, Tensor) or set(given) - {"pixel_values", "image_sizes"}:
        return None
    if sizes is not None and len(torch.as_tensor(sizes)) != values.shape[0]:
        return None
    more = (lambda i: {}) if sizes is None else (lambda i: {"image_sizes": torch.as_tensor(sizes)[i : i + 1]})
    return [{"pixel_values": values[i : i + 1], **more(i)} for i in range(values.shape[0])]
