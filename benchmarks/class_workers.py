"""One function of many names, in processes of their own: what crashes or hangs takes nothing else along."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["NotReached", "Stopped", "results"]

WORKERS = 2
EACH = 180.0  # seconds for one name, the imports of a new process included; a class takes 0.1 to 3


@dataclass(frozen=True)
class Stopped:
    """No result: the function raised, or its process ended or hung."""

    text: str


@dataclass(frozen=True)
class NotReached:
    """No result: the time was over before."""


def results(
    names: Sequence[str],
    look: Callable[[str], Any],
    end: float | None = None,
    workers: int = WORKERS,
    each: float = EACH,
) -> Iterator[tuple[str, Any]]:
    """(name, what `look` returned, a `Stopped` or a `NotReached`) of every name, in the order in which they end.

    look: can be pickled. end: time of the clock (`time.time()`) at which everything stops, or None. each: seconds that
    one name may take.
    """
    todo = list(reversed(names))
    busy: list[_Worker] = []
    try:
        while todo or busy:
            if end is not None and time.time() > end:
                yield from ((name, NotReached()) for name in [*(w.name for w in busy), *reversed(todo)])
                return
            while todo and len(busy) < workers:
                busy.append(_Worker(look, todo.pop()))
            wait([w.pipe for w in busy], timeout=0.5)
            for worker in list(busy):
                if (found := worker.result(each)) is None:
                    continue
                yield worker.name, found
                if worker.alive and todo:
                    worker.give(todo.pop())
                else:
                    worker.stop()
                    busy.remove(worker)
    finally:
        for worker in busy:
            worker.stop()


class _Worker:
    """One process, at work on one name."""

    def __init__(self, look: Callable[[str], Any], name: str) -> None:
        spawn = get_context("spawn")  # threads of torch do not live through a fork
        self.pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(look, there), daemon=True)
        self._process.start()
        there.close()
        self.alive = True
        self.give(name)

    def give(self, name: str) -> None:
        """The next name."""
        self.name, self._since = name, time.monotonic()
        with suppress(ConnectionError):  # it ended meanwhile: `result` says so
            self.pipe.send(name)

    def result(self, each: float) -> Any:
        """What was found, or None if it is not there yet."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.stop()
            return Stopped(f"its process ended with status {self._process.exitcode}")
        if time.monotonic() - self._since > each:
            self.stop()
            return Stopped(f"no end after {each:.0f} seconds")
        return None

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.alive = False
        self.pipe.close()
        self._process.join(timeout=1)  # an idle one ends by itself
        self._process.kill()
        self._process.join()


def _work(look: Callable[[str], Any], pipe: Connection) -> None:
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        try:
            found = look(name)
        except Exception as error:
            found = Stopped(f"{type(error).__name__}: {' '.join(str(error).split())}")
        try:
            pipe.send(found)
        except ConnectionError:  # nobody waits any more
            return
