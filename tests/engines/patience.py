"""Limits by progress, not by the clock: a slow or busy machine takes longer and is waited for, a stuck engine is not.

A child process has time while it works and says something. It is stopped when it (with all that it started) has used
`WORK` seconds of processor time since its last word, which an engine that spins does, or when it has been silent for
`SILENCE` seconds of the clock, which one that waits for ever does. Either way the error says who, and how far it came.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil

WORK, SILENCE = 240.0, 1200.0


class Patience:
    """Watches one child and its log.

    who: for the error, for example the name of the suite. words: the file that the child's output goes to.
    """

    def __init__(self, who: str, pid: int, words: Path, work: float = WORK, silence: float = SILENCE) -> None:
        self.who, self.words, self.work, self.silence = who, words, work, silence
        self._child = psutil.Process(pid)
        self._said, self._used, self._heard = -1, 0.0, time.monotonic()

    def check(self) -> None:
        """Raise if the child made no progress for too long.

        Raises:
            TimeoutError: who, how long, and the last lines of the log.
        """
        size, used = self.words.stat().st_size, self._processor_time()
        if size != self._said:
            self._said, self._used, self._heard = size, used, time.monotonic()
            return
        worked, waited = used - self._used, time.monotonic() - self._heard
        if worked > self.work or waited > self.silence:
            raise TimeoutError(
                f"{self.who} is stuck: {waited:.0f} s without a word, {worked:.0f} s of processor time in them. "
                f"The end of its log:\n{tail(self.words)}"
            )

    def _processor_time(self) -> float:
        total = 0.0
        try:
            for process in [self._child, *self._child.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                total += times.user + times.system
        except psutil.NoSuchProcess:
            pass
        return max(total, self._used)  # what ended takes its time with it


def run(who: str, program: list[str], words: Path, **options: object) -> None:
    """Run a program to its end, patiently.

    Raises:
        TimeoutError: stuck, see `Patience`. RuntimeError: it failed; with the end of its log.
    """
    with open(words, "w", encoding="utf-8") as out:
        child = subprocess.Popen(program, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **options)
    watch = Patience(who, child.pid, words)
    try:
        while child.poll() is None:
            watch.check()
            time.sleep(0.2)
    finally:
        stop(child)
    if child.returncode:
        raise RuntimeError(f"{who} ended with {child.returncode}. The end of its log:\n{tail(words)}")


def stop(child: subprocess.Popen) -> None:
    """End a child and everything it started."""
    try:
        family = [p for p in psutil.Process(child.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def tail(words: Path, characters: int = 3000) -> str:
    """The end of a log."""
    return words.read_text(encoding="utf-8", errors="replace")[-characters:]
