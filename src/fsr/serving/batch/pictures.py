"""Open the pictures of a batch where it is answered: files beside the input, or bytes inside its Parquet file."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from fsr.asking.images import decode_image, open_image
from fsr.errors import UsageError
from fsr.serving.batch.inputs import Row

__all__ = ["Pictures"]


class Pictures:
    """The pictures of one input. Of a Parquet file one row group is held, because batches follow its order."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.folder = source if source.is_dir() else source.parent
        self._file: Any = None
        self._starts: list[int] = []
        self._group, self._column = -1, None

    def open(self, row: Row) -> list[Image.Image]:
        """The picture (or pictures) of one row.

        Raises:
            UsageError: there is none, or it cannot be read.
        """
        if row.images is None or row.error is not None:
            return [self._open(row)]
        try:
            return [open_image(self.folder / path) for path in row.images]
        except OSError as error:
            raise UsageError(f"{row.image} cannot be read ({error}): check the files and their folder.") from error

    def _open(self, row: Row) -> Image.Image:
        if row.error is not None or row.image is None:
            raise UsageError(row.error or "the row has no `image`: give a path.")
        try:
            if row.place is None:
                return open_image(self.folder / row.image)
            value = self._embedded(row.place)
        except OSError as error:  # a name that is too long, a folder that may not be entered, a disk that went away
            raise UsageError(f"{row.image} cannot be read ({error}): check the file and its folder.") from error
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(data, bytes):
            return decode_image(data, row.image)
        if isinstance(path, str):
            return open_image(self.folder / path)
        raise UsageError(f"{row.image} holds no picture: give the bytes of a picture file, or a path.")

    def _embedded(self, place: int) -> Any:
        """What the column `image` holds at a row of the file: bytes, or a struct of `bytes` and `path`."""
        import pyarrow.parquet as pq

        if self._file is None:
            self._file = pq.ParquetFile(self.source)
            sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            self._starts = [0, *accumulate(sizes)]
        group = bisect_right(self._starts, place) - 1
        if group != self._group:
            self._column = self._file.read_row_group(group, columns=["image"]).column("image")
            self._group = group
        return self._column[place - self._starts[group]].as_py()  # type: ignore[index]
