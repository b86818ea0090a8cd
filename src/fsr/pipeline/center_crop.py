"""What a processor cuts off before the model sees anything, read from its settings: CLIP's keeps the middle square."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fsr.tokens import CenterCrop, Selection

__all__ = ["center_crop", "placed"]


def center_crop(processor: Any, modality: str = "image") -> CenterCrop | None:
    """What the processor of a model does to pictures or clips ("image", "video"); None where all of it is seen."""
    inner = getattr(processor, f"{modality}_processor", None)
    if inner is None or getattr(inner, "image_grid_pinpoints", None):  # tiles of a grid cover everything
        return None
    if type(inner).__name__.startswith("LlavaImageProcessor") and getattr(inner, "do_pad", False):
        return CenterCrop(square=True)
    cut = _sides(getattr(inner, "crop_size", None))
    if not getattr(inner, "do_center_crop", False) or cut is None:
        return None
    if not getattr(inner, "do_resize", True):
        return CenterCrop(cut=cut)
    size = getattr(inner, "size", None)
    if shortest := _get(size, "shortest_edge"):
        return CenterCrop(shortest=int(shortest), cut=cut)
    return CenterCrop(scaled=_sides(size), cut=cut)


def placed(selection: Selection, crop: CenterCrop | None) -> Selection:
    """The same selection, which knows where its tokens lie in the user's picture."""
    if selection.geometry is None:
        return selection
    return replace(selection, geometry=replace(selection.geometry, crop=crop))


def _sides(size: Any) -> tuple[int, int] | None:
    height, width = _get(size, "height"), _get(size, "width")
    return (int(height), int(width)) if height and width else None


def _get(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
