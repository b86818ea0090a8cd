"""What pruning did, counted where it is done: in the engine, for every picture that is encoded.

As Prometheus metrics they show up in the server's `/metrics` where processes share theirs: with several API servers, or
with `PROMETHEUS_MULTIPROC_DIR` set to an empty folder. In any case a line goes to the log, at most once a minute.

| metric | what |
|---|---|
| `fsr:visual_tokens_kept_total`, `fsr:visual_tokens_dropped_total` | K and N - K, summed over pictures |
| `fsr:selection_milliseconds` | histogram: from the tower's features to the kept rows, per pass; label `backend` |
| `fsr:choices_remembered_total` | pictures encoded again that kept the rows of the first time |
| `fsr:choices_failed_total` | pictures whose features or scores were not finite (see `failures`) |
"""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Any

from fsr.errors import counted

__all__ = ["Tally"]

EVERY = 60.0  # seconds between two lines of the log
BOUNDS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


class Tally:
    """Counts of one engine process. speaks: False for all ranks but the first, which would count everything again."""

    def __init__(self, speaks: bool = True, every: float = EVERY) -> None:
        self.speaks, self._every, self._told = speaks, every, time.monotonic()
        self.pictures = self.kept = self.total = self.remembered = self.passes = 0
        self.milliseconds = 0.0

    def encoded(self, kept: int, total: int, remembered: bool) -> None:
        """One picture with a budget, `kept` of `total` tokens."""
        self.pictures, self.kept, self.total = self.pictures + 1, self.kept + kept, self.total + total
        self.remembered += remembered
        if self.speaks:
            made = _metrics()
            made["kept"].inc(kept)
            made["dropped"].inc(total - kept)
            made["remembered"].inc(int(remembered))

    def failed(self) -> None:
        """One picture that the method could not choose from."""
        if self.speaks:
            _metrics()["failed"].inc()

    def selected(self, milliseconds: float, backend: str) -> None:
        """One pass in which tokens were chosen."""
        self.passes, self.milliseconds = self.passes + 1, self.milliseconds + milliseconds
        if not self.speaks:
            return
        _metrics()["selection"].labels(backend=backend).observe(milliseconds)
        if (now := time.monotonic()) - self._told >= self._every:
            self._told = now
            logging.getLogger("vllm.fsr").info("%s, backend %s", self, backend)

    def __str__(self) -> str:
        each = self.milliseconds / max(1, self.passes)
        return (
            f"fsr: {counted(self.pictures, 'picture')}, {self.kept} of {self.total} visual tokens kept, "
            f"selection {each:.1f} ms per pass, {self.remembered} choices remembered"
        )


@cache
def _metrics() -> dict[str, Any]:
    from prometheus_client import Counter, Histogram

    return {
        "kept": Counter("fsr:visual_tokens_kept", "Visual tokens kept, over all encoded pictures."),
        "dropped": Counter("fsr:visual_tokens_dropped", "Visual tokens dropped, over all encoded pictures."),
        "remembered": Counter("fsr:choices_remembered", "Pictures encoded again that kept the same rows."),
        "failed": Counter("fsr:choices_failed", "Pictures whose features or scores were not finite."),
        "selection": Histogram(
            "fsr:selection_milliseconds", "Time to choose tokens, per pass.", ["backend"], buckets=BOUNDS
        ),
    }
