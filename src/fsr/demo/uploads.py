"""Pictures that visitors send: checked before decoding, held in memory, deleted from disk when the visitor leaves."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from fsr.asking.images import open_image
from fsr.errors import UsageError

__all__ = ["Uploads"]


class Uploads:
    """The folder that the server writes uploads to.

    Args:
        folder: pictures from anywhere else are refused, whatever a browser claims.
        keep: pictures of the page itself, whose files stay.
    """

    def __init__(self, folder: Path, keep: list[Image.Image]) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._own = {picture.tobytes() for picture in keep}
        self._held: dict[str, dict[str, Image.Image]] = {}
        self._lock = Lock()

    def open(self, payload: Any, visitor: str) -> Image.Image:
        """The picture that a browser sent, as Gradio's file record.

        Raises:
            UsageError: none, not from the upload folder, too large, or not a picture.
        """
        path = payload.get("path") if isinstance(payload, dict) else None
        if not isinstance(path, str) or not path:
            raise UsageError("There is no picture: drop one, or choose a scene.")
        file = Path(os.path.realpath(path))
        if not file.is_relative_to(self.folder):
            raise UsageError("This picture was not uploaded here: drop it on the page.")
        with self._lock:
            known = self._held.get(visitor, {}).get(str(file))
        if known is not None:
            return known
        try:
            picture = open_image(file)
        except UsageError as error:
            file.unlink(missing_ok=True)
            name = str(payload.get("orig_name") or "The file")
            raise UsageError(str(error).replace(str(file), name).replace(file.name, name)) from None
        with self._lock:
            self._held.setdefault(visitor, {})[str(file)] = picture
        return picture

    def refuse(self, payload: Any, visitor: str) -> None:
        """Delete one picture of the visitor's that turned out to be of no use."""
        with self._lock:
            mine = self._held.get(visitor, {})
            file = os.path.realpath(str(payload.get("path"))) if isinstance(payload, dict) else ""
            found = {file: mine.pop(file)} if file in mine else {}
        self._delete(found)

    def forget(self, visitor: str) -> None:
        """Delete what the visitor uploaded."""
        with self._lock:
            found = self._held.pop(visitor, {})
        self._delete(found)

    def _delete(self, found: dict[str, Image.Image]) -> None:
        """Unless another visitor sent the same file or it belongs to the page."""
        with self._lock:
            others = {path for held in self._held.values() for path in held}
        for path, picture in found.items():
            if path not in others and picture.tobytes() not in self._own:
                Path(path).unlink(missing_ok=True)
