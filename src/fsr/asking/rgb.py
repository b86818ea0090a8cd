"""Any picture that Pillow opens, as 8-bit RGB: deep grey scaled to its depth, transparency laid on white.

Pillow's own conversion clips deep grey at 255 (a 16-bit scan becomes white) and drops transparency (what is hidden
under it, mostly black, comes to light).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

__all__ = ["clear_colour_at_8_bits", "to_rgb"]

# Their readers hand 16 bits over as 16 bits. Everywhere else (TIFF, arrays) 12 bits in a field of 16 are common.
SCALED_TO_16 = ("PNG", "PPM", "JPEG2000")
DEPTHS = (8, 10, 12, 14, 16, 24, 32)
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
INVERTED, SIGNED = 0, 2  # values of the last two


def to_rgb(picture: Image.Image) -> Image.Image:
    """The same picture in mode RGB, composited on white.

    - Whole numbers beyond 8 bits: PNG, PGM and JPEG 2000 say their depth; elsewhere it is the smallest of 8, 10, 12,
      14, 16, 24 or 32 bits that holds the brightest value. Negative ones: darkest to brightest becomes 0 to 255.
    - Floating point: 0 to 1 or, where it goes beyond, 0 to 255; any other range from darkest to brightest. NaN and
      infinity are as dark as the darkest value.
    """
    if picture.mode[0] in "IF":
        return _deep_grey(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    plain = picture.convert({"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode))
    inked = plain.convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(inked, mask=inked.getchannel("A"))
    return white


def clear_colour_at_8_bits(picture: Image.Image) -> None:
    """For a PNG that was just opened: it names its clear colour in its own depth, and its pixels will have 8 bits."""
    clear = picture.info.get("transparency")
    if picture.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    elif picture.mode == "L" and isinstance(clear, int):
        raw = picture.tile[0][3] if picture.tile else ""  # type: ignore[attr-defined]
        picture.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(str(raw), 1)


def _deep_grey(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    grey = _of_floats(values) if picture.mode == "F" else _of_integers(values, picture)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _of_integers(values: np.ndarray[Any, Any], picture: Image.Image) -> np.ndarray[Any, Any]:
    tags = getattr(picture, "tag_v2", {})
    signed = _first(tags.get(SAMPLE_FORMAT)) == SIGNED
    if tags and not signed and values.dtype == np.int32:
        values = values.view(np.uint32)  # mode I has no other room for 32 unsigned bits
    if not values.size or values.min() < 0:
        return _stretched(values)
    brightest = int(values.max())
    depths = (16,) if picture.format in SCALED_TO_16 and brightest < 2**16 else DEPTHS
    if signed:  # a bit is the sign's
        depths = tuple(sorted({*depths, _first(tags.get(BITS, 32)) - 1}))
    depth = next(bits for bits in depths if brightest < 2**bits)
    grey: np.ndarray[Any, Any] = (values >> (depth - 8)).astype(np.uint8)
    # Pillow turns inverted grey around at 8 bits only.
    return 255 - grey if _first(tags.get(PHOTOMETRIC)) == INVERTED else grey


def _of_floats(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    fine = np.isfinite(values)
    low, high = (float(values[fine].min()), float(values[fine].max())) if fine.any() else (0.0, 0.0)
    values = np.where(fine, values, np.float32(low))
    if low < 0 or high > 255:
        return _stretched(values)
    return np.rint(values * np.float32(255 if high <= 1 else 1)).astype(np.uint8)


def _stretched(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Darkest to brightest as 0 to 255; an even picture is black."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value
