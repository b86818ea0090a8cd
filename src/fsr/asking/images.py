"""Open any picture file: clear errors, right way up, 8-bit RGB on white. Every command opens pictures here."""

from __future__ import annotations

from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from fsr.asking.rgb import clear_colour_at_8_bits, to_rgb
from fsr.errors import PictureError

__all__ = ["MAX_PIXELS", "bundled_scene", "decode_image", "open_image"]

MAX_PIXELS = 50_000_000  # a 50-megapixel photograph is fine; a file that unpacks to more is refused before decoding
# EXIF orientation -> what turns the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file (the first of several), turned upright; `fsr.asking.rgb` says what becomes of deep grey and
    of transparency.

    Raises:
        PictureError: no such file, not a picture, damaged, or more than `MAX_PIXELS`.
    """
    try:
        file = Path(path).expanduser()
        there = file.is_file()
    except (OSError, RuntimeError) as error:  # a folder that may not be entered, a name too long, an unknown ~user
        raise PictureError(f"{str(path)!r} cannot be read ({_one_line(error)}): check the path.") from error
    if not there:
        raise PictureError(f"no file {str(path)!r}: give the path of a picture (PNG, JPEG, WebP, ...).")
    return _opened(file, file.name)


def decode_image(data: bytes, name: str) -> Image.Image:
    """The picture in the bytes of a file, as `open_image` has it; `name` is what errors call it.

    Raises:
        PictureError: not a picture, damaged, or more than `MAX_PIXELS`.
    """
    return _opened(BytesIO(data), name)


def _opened(file: Path | BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as picture:
            _check_size(picture, name)
            if picture.format == "EPS":  # a program, which Ghostscript would run
                raise PictureError(f"{name} is PostScript: save it as PNG first.")
            if picture.format == "PNG":
                clear_colour_at_8_bits(picture)
            picture.load()
            _check_size(picture, name)  # some containers only now say how large what they hold is
            upright = UPRIGHT.get(_orientation(picture))
            plain = to_rgb(picture)
            return plain if upright is None else plain.transpose(upright)
    except PictureError:
        raise
    except Exception as error:  # on damaged files decoders raise anything
        known = not isinstance(error, UnidentifiedImageError)  # whose text is the address of an object
        reason = (_one_line(error)[:120] or type(error).__name__) if known else "no format that Pillow knows"
        raise PictureError(f"{name} is not a readable picture ({reason}): save it anew as PNG or JPEG.") from error


def _check_size(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError(f"{name} has {picture.width} x {picture.height} pixels: make it smaller than 50 megapixels.")


def _orientation(picture: Image.Image) -> Any:
    """1 to 8. `ImageOps.exif_transpose` writes the whole block anew, and fails where any of it is broken."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a block that cannot be read turns nothing
        return 1
    return found if isinstance(found, int) else 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def bundled_scene(number: int = 1, model: str = "mini") -> Image.Image:
    """A scene that ships with the package (1 to 4), drawn from the test split by `fsr.minivlm.scenes`, or for
    `mini-qwen3` at several sizes by `fsr.minivlm.native.scenes`."""
    folder = files("fsr.minivlm") / "data" / "scenes"
    if model == "mini-qwen3":
        folder = folder / model
    with (folder / f"scene{number}.png").open("rb") as f:
        return Image.open(f).convert("RGB")
