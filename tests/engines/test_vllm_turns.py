"""Growing chats keep their prefix cache: see `vllm_turns.py`, which this runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import patience
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")


def test_growing_chats_keep_their_prefix(tmp_path):
    """Each picture by the question of its own turn: as many tokens come from the cache as without pruning. By the
    newest question for all: none behind the first picture's mark."""
    program = [sys.executable, str(Path(__file__).with_name("vllm_turns.py")), str(tmp_path)]
    patience.run("vllm_turns", program, tmp_path / "log.txt", env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(patience.tail(tmp_path / "log.txt", 900))
    told = json.loads((tmp_path / "turns.json").read_text(encoding="utf-8"))
    for way in ("unpruned", "own", "a question per picture"):
        assert [turn["cached"] for turn in told[way]] == [turn["possible"] for turn in told[way]], way
        assert told[way][-1]["cached"] >= 96
    # Another question in every turn: the pictures are chosen anew, and nothing behind the first one's mark is known.
    assert [turn["cached"] for turn in told["all"]] == 5 * [0] and told["all"][-1]["possible"] >= 96
    # Known again once a newer picture takes the question.
    assert told["newest"][2]["cached"] == 0 < told["newest"][3]["cached"] < told["newest"][3]["possible"]
    # "own" is the list of the turns' questions: the same tokens, all from the cache.
    again = told["own, written out"]
    assert [turn["answer"] for turn in again] == [turn["answer"] for turn in told["own"]]
    assert again[0]["cached"] >= 32
