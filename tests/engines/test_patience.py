"""A slow child is waited for, a stuck one is not."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("psutil", reason="psutil comes with vLLM: make test-engines")

import patience


@pytest.fixture
def hasty(monkeypatch):
    made = patience.Patience
    monkeypatch.setattr(patience, "Patience", lambda *given: made(*given, work=1.0, silence=4.0))


def program(text):
    return [sys.executable, "-u", "-c", text]


def test_words_are_progress(hasty, tmp_path):
    patience.run("slow", program("import time\nfor _ in range(6): print('on'); time.sleep(1)"), tmp_path / "log")
    assert (tmp_path / "log").read_text() == 6 * "on\n"


def test_work_without_a_word_is_none(hasty, tmp_path):
    with pytest.raises(TimeoutError, match=r"spinner is stuck(.|\n)*started"):
        patience.run("spinner", program("print('started')\nwhile True: pass"), tmp_path / "log")


def test_silence_is_none(hasty, tmp_path):
    with pytest.raises(TimeoutError, match="sleeper is stuck"):
        patience.run("sleeper", program("import time; time.sleep(60)"), tmp_path / "log")


def test_a_failure_shows_the_end_of_the_log(hasty, tmp_path):
    with pytest.raises(RuntimeError, match=r"broken ended with 3(.|\n)*why"):
        patience.run("broken", program("print('why'); raise SystemExit(3)"), tmp_path / "log")
