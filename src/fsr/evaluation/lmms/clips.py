"""Video files as a fixed number of frames: what the papers of this field call "32 frames"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsr.errors import UsageError

__all__ = ["Clip", "read_clip"]


@dataclass(frozen=True)
class Clip:
    """frames: uint8 [T, H, W, 3], RGB. total, fps: of the whole file. indices: the T frames among them."""

    frames: np.ndarray
    total: int
    fps: float
    indices: tuple[int, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        """What video processors of Transformers want to know of frames that were sampled before (time stamps)."""
        return {"total_num_frames": self.total, "fps": self.fps, "frames_indices": list(self.indices)}


def read_clip(source: Any, frames: int) -> Clip:
    """`frames` frames at equal distances, the first and the last among them (all, if the file has fewer).

    Raises:
        UsageError: no path of a video file, a file that cannot be decoded, or no decord.
    """
    if not isinstance(source, str) or not Path(source).is_file():
        raise UsageError(
            f"{str(source)[:200]!r} is no video file: tasks that give folders of frames, or parts of a clip, are not "
            "supported."
        )
    try:
        from decord import VideoReader
    except ImportError as error:
        raise UsageError("video tasks need decord: pip install decord.") from error
    try:
        reader = VideoReader(source, num_threads=1)
        total = len(reader)
        indices = tuple(np.linspace(0, total - 1, min(frames, total)).round().astype(int).tolist())
        return Clip(reader.get_batch(list(indices)).asnumpy(), total, float(reader.get_avg_fps()), indices)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UsageError(f"{source} cannot be decoded: {' '.join(str(error).split())[:200]}") from error
