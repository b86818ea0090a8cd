"""What all rows of one `fsr batch` have in common, and the file beside the answers that remembers it.

A folder of answers belongs to one job: the settings that decide an answer are written before the first one, and from
then on a run with others is refused. What only decides how fast it goes (workers, batch size, device, cluster) may
change.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsr.errors import UsageError
from fsr.methods.parts import split
from fsr.methods.picture_budgets import EachPrompt
from fsr.version import __version__

__all__ = ["SETTINGS", "Job"]

# Readers of Parquet folders (pyarrow, pandas, Ray, Spark) skip names that begin with an underscore.
SETTINGS = "_settings.json"


@dataclass(frozen=True)
class Job:
    """A job as it is sent to every worker.

    source: the input; out: the folder for the answers; both absolute, and the same on all machines of a cluster.
    model: as `fsr.asking.load.load` takes it. method: as `prune` takes it, budget included. relevance: see `prune`.
    max_new_tokens: per answer. device: auto, cpu or cuda.
    """

    source: Path
    out: Path
    method: Any
    model: str = "mini"
    relevance: str = "auto"
    max_new_tokens: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={self.max_new_tokens}: an answer needs at least 1.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device={self.device!r} is unknown: use auto, cpu or cuda; Ray deals out the GPUs.")

    @property
    def methods(self) -> list[Any]:
        """The method, or the members of a chain."""
        before_llm, in_llm = split(self.method)
        return [m for m in (before_llm, *in_llm) if m is not None]

    @property
    def each(self) -> EachPrompt | None:
        """The budgets of the pictures of a row, where each has its own."""
        return next((m.keep for m in self.methods if isinstance(m.keep, EachPrompt)), None)

    @property
    def keep(self) -> str:
        """The budget as text, for tokens and shares in one column."""
        return " | ".join(str(m.keep) for m in self.methods)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides an answer, as JSON gives it back."""
        values = {
            "fsr": __version__,
            "model": self.model,
            "method": " | ".join(m.name for m in self.methods),
            "relevance": self.relevance,
            "max_new_tokens": self.max_new_tokens,
        }
        for i, m in enumerate(self.methods):
            values |= {f"{m.name}{i or ''}.{option}": value for option, value in asdict(m).items()}
        return dict(json.loads(json.dumps(values)))

    def check(self) -> None:
        """Is `out` free, or the folder of this very job? Settings without an answer beside them bind nobody.

        Raises:
            UsageError: it is no folder, holds other files, or answers of other settings.
        """
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {str(self.out)!r} is a file: give a folder for the answers.")
        names = [p.name for p in self.out.iterdir() if p.name[0] != "."] if self.out.is_dir() else []
        if not set(names) - {SETTINGS}:
            return
        if SETTINGS not in names:
            raise UsageError(f"{str(self.out)!r} holds other files: give --out a folder of its own.")
        file = self.out / SETTINGS
        try:
            there = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:
            raise UsageError(f"{file} cannot be read ({error}): give another --out.") from error
        now = self.settings
        if there != now:
            # Of another method the options say nothing.
            shared = [f"{k} {there[k]} there, {now[k]} now" for k in now if k in there and there[k] != now[k]]
            raise UsageError(
                f"{str(self.out)!r} was begun with other settings ({'; '.join(shared) or 'other options'}): "
                "repeat those, or give another --out."
            )

    def claim(self) -> None:
        """Make the folder and write the settings.

        Raises:
            UsageError: that is not possible there.
        """
        temporary = self.out / f".settings-{os.getpid()}"
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.out / SETTINGS)
        except OSError as error:
            raise UsageError(f"cannot write to {str(self.out)!r} ({error}): give another --out.") from error
