"""What one trial said, question by question, and the file that keeps it between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fsr.errors import UsageError

__all__ = ["Outcome", "RecordFile"]


@dataclass(frozen=True)
class Outcome:
    """One question.

    item: its number in the set. answer: the model's words. kept, focus, scan: tokens handed on and why.
    wanted: K_F before its cap, None for methods without Focus.
    radius: largest chordal distance from a token of the picture to the nearest kept one (original features).
    on_asked, on_big: share of the kept tokens that lie on the asked objects, on the big distractor; None where the
        question is about no object, or the scene has no such distractor.
    seen, found: share of the asked patches that were kept, and of the asked objects with at least one kept patch; None
        where the question is about no object.
    """

    item: int
    answer: str
    kept: int
    focus: int
    scan: int
    wanted: int | None
    radius: float
    on_asked: float | None
    on_big: float | None
    seen: float | None
    found: float | None


class RecordFile:
    """Outcomes of one trial as JSON lines, written batch by batch: a run that was stopped goes on where it was."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.outcomes: dict[int, Outcome] = {}
        if path is None:
            return
        head = json.dumps({"fields": [f.name for f in fields(Outcome)], **settings}, sort_keys=True)
        if path.exists():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]  # a line that was cut off is asked again
            path.write_bytes(whole)
            try:
                first, *lines = whole.decode().splitlines() or [""]
                if first == head:  # else it was written by another release
                    found = (Outcome(**json.loads(line)) for line in lines)
                    self.outcomes = {o.item: o for o in found}
                    return
            except (ValueError, TypeError) as error:
                raise UsageError(
                    f"{path} is damaged ({error}): delete it, and its questions are asked anew."
                ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + "\n")

    def has(self, items: Iterable[int]) -> bool:
        """True if all these questions are answered."""
        return all(i in self.outcomes for i in items)

    def add(self, outcomes: list[Outcome]) -> None:
        """Keep a batch, on disk too where there is a file."""
        self.outcomes |= {o.item: o for o in outcomes}
        if self.path is not None:
            with self.path.open("a", buffering=1 << 20) as f:  # a batch in one write: others may append to the file too
                f.write("".join(json.dumps(asdict(o)) + "\n" for o in outcomes))

    def complete(self, n: int) -> list[Outcome]:
        """All n outcomes in the order of the set."""
        return [self.outcomes[i] for i in range(n)]
