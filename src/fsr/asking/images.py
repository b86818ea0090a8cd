"""Open a picture that a stranger gave: clear errors, right way up, RGB."""

from __future__ import annotations

from importlib.resources import files
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from fsr.errors import UsageError

__all__ = ["MAX_PIXELS", "bundled_scene", "decode_image", "open_image"]

MAX_PIXELS = 50_000_000  # a 50-megapixel photograph is fine; a file that unpacks to more is refused before decoding


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file.

    Raises:
        UsageError: no such file, not a picture, damaged, or more than `MAX_PIXELS`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"no file {str(path)!r}: give the path of a picture (PNG, JPEG, WebP, ...).")
    return _opened(file, file.name)


def decode_image(data: bytes, name: str) -> Image.Image:
    """The picture in the bytes of a file; `name` is what errors call it.

    Raises:
        UsageError: not a picture, damaged, or more than `MAX_PIXELS`.
    """
    return _opened(BytesIO(data), name)


def _opened(file: Path | BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UsageError(
                    f"{name} has {picture.width} x {picture.height} pixels: make it smaller than 50 megapixels."
                )
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{name} is not a readable picture ({' '.join(str(error).split())[:120]}).") from error


def bundled_scene(number: int = 1, model: str = "mini") -> Image.Image:
    """A scene that ships with the package (1 to 4), drawn from the test split by `fsr.minivlm.scenes`, or for
    `mini-qwen3` at several sizes by `fsr.minivlm.native.scenes`."""
    folder = files("fsr.minivlm") / "data" / "scenes"
    if model == "mini-qwen3":
        folder = folder / model
    with (folder / f"scene{number}.png").open("rb") as f:
        return Image.open(f).convert("RGB")
