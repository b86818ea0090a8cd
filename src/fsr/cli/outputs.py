"""Files and folders that a command will write: tried before the work begins, so that nothing is lost at its end."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fsr.errors import UsageError

__all__ = ["output_file", "output_folder"]


def output_file(name: str | None, kinds: Sequence[str]) -> Path | None:
    """The path of a file to be written, with one of these suffixes. It is opened once, and left as it was.

    Raises:
        UsageError: another suffix, no such folder, a folder of that name, or nothing can be written there.
    """
    if name is None:
        return None
    try:
        path = Path(name).expanduser()
        if path.suffix.lower() not in kinds or not path.parent.is_dir() or path.is_dir():
            raise UsageError(f"cannot write {name!r}: give a {' or '.join(kinds)} file in a folder that exists.")
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, a name with a zero in it
        if isinstance(error, UsageError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot write {name!r} ({reason}): give another file.") from error
    return path


def output_folder(name: str | None) -> Path | None:
    """The path of a folder to be written to, which may have to be made (that is left to the work).

    Raises:
        UsageError: it is a file, or nothing can be written there.
    """
    if name is None:
        return None
    try:
        path = Path(name).expanduser()
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not name or "\0" in name or not there.is_dir():
            raise UsageError(f"cannot write to {name!r}: give a folder.")
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot write to {name!r} ({reason}): give another folder.") from error
    return path
