"""The vLLM plug-in in the real engine: greedy tokens equal to those of Transformers pruned by `fsr.prune`.

Each engine lives in a process of its own (`vllm_cases.py`), which records what it answered beside the reference.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import patience
import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")

HERE = Path(__file__).resolve().parent
# Log-probabilities of the chosen tokens, float32: what the order of summation leaves.
GAP = 2e-5


def told(suite, folder):
    program = [sys.executable, str(HERE / "vllm_cases.py"), suite, str(folder)]
    patience.run(suite, program, folder / "log.txt", env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / f"{suite}.json").read_text(encoding="utf-8"))


def equal(cases):
    """Every answered case equals the reference; returns the prompt lengths by name."""
    answered = {name: case for name, case in cases.items() if "error" not in case}
    assert answered
    for name, case in answered.items():
        assert case["vllm"] == case["transformers"], name
        assert case["gap"] < GAP, name
        assert case["prompt"][0] == case["prompt"][1], name
    return {name: case["prompt"][0] for name, case in answered.items()}


def test_llava_with_its_text_tower(tmp_path):
    """mini: any K, K = N and beyond, shares, off; questions are part of the cache's key; bad requests harm no other."""
    cases = told("mini_fsr", tmp_path)
    length = equal(cases)
    budgets = [length[f"budget/{i}"] - length["budget/7"] + 144 for i in range(8)]
    assert budgets == [16, 1, 4, 16, 143, 144, 144, 144]
    # One picture, three questions, one budget: the cache may not answer one with the tokens of another.
    again = [cases[f"the same again/{i}"]["vllm"] for i in range(3)]
    assert again == [cases[f"questions on one picture/{i}"]["vllm"] for i in range(3)]
    hints = {
        "negative": "fsr_keep", "share": "fsr_keep", "text": "not a number", "unknown": "did you mean fsr_keep",
        "empty question": "fsr_question is empty", "no question": "no question in the prompt",
    }  # fmt: skip
    for name, hint in hints.items():
        assert hint in cases[f"{name}/refused"]["error"]
    assert "after bad requests/0" in length and "pruned outside/1" in length
    # NaN behind the tower, which only the engine can find: that request alone ends, with an error.
    ends = cases["reasons/refused"]["error"]
    assert (ends[1], ends[3]) == ("error", "error") and "error" not in (ends[0], ends[2])
    came = cases["what came/refused"]["error"]
    assert (came[1], came[3]) == (0, 0) and came[0] and came[2]


def test_a_peer_without_a_question_in_chunks(tmp_path):
    """VisionZip on mini, prompts cut into chunks of 32: another question reuses the picture's cached prefix."""
    cases = told("mini_visionzip", tmp_path)
    equal(cases)
    assert cases["other question/0"]["cached"] >= 32
    assert "encoder cache size" in cases["larger than the encoder's budget/refused"]["error"]


def test_a_picture_keeps_its_choice(tmp_path):
    """bfloat16, encoder cache gone, prefix cache alive: without the memory some pictures change their tokens, with it
    none. The scheduler puts eight pictures of 64 tokens into a step; the tower takes four of 144 at a time."""
    cases = told("mini_again", tmp_path)
    for case in cases.values():
        assert case["encoded again"] == 40 and case["cached"] >= 32
        assert case["largest pass"] == 4 * 144 <= 600
    assert cases["forgetful"]["changed"] > 0 == cases["remembering"]["changed"]
    assert "40 choices remembered" in cases["remembering"]["tally"]


# Budgets of the suite's "budget" cases beside the tokens that are kept of the picture.
FAMILIES = {
    "llava_next": [1, 36, 39, 40, 41, 72, 72],
    "llava_onevision": [1, 36, 39, 40, 41, 72, 72],
    "internvl": [1, 6, 11, 12, 12, 12],
    "gemma3": [1, 8, 15, 16, 16, 16],
    "qwen2": [1, 10, 31, 32, 32, 32],
    "qwen2_5": [1, 10, 31, 32, 32, 32],
    "qwen3": [1, 10, 31, 32, 32, 32],
    "qwen3_moe": [1, 10, 31, 32, 32, 32],
    "qwen3_5": [1, 10, 31, 32, 32, 32],
    "gemma4": [1, 28, 15, 16, 55, 55],
}
# Tokens of a block of the prefix cache, where it is not 32.
BLOCKS = {"gemma4": 64}
# Pictures of at most 20 tokens: a step never holds more of them than the tower may take at once.
SMALL = ("internvl",)


def growing_chats_keep_their_prefix(told):
    """Each picture by the question of its own turn: as many tokens come from the cache as without pruning."""
    for way in ("unpruned", "own", "a question per picture"):
        assert [turn["cached"] for turn in told[way]] == [turn["possible"] for turn in told[way]], way
        assert told[way][-1]["cached"] >= 96
    # Another question for all in every turn: nothing behind the first picture's mark is known.
    assert [turn["cached"] for turn in told["all"]] == 5 * [0] and told["all"][-1]["possible"] >= 96
    # Known again once a newer picture takes the question.
    assert told["newest"][2]["cached"] == 0 < told["newest"][3]["cached"] < told["newest"][3]["possible"]
    # "own" is the list of the turns' questions: the same tokens, all from the cache.
    again = told["own, written out"]
    assert [turn["answer"] for turn in again] == [turn["answer"] for turn in told["own"]] and again[0]["cached"] >= 32


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, tmp_path):
    """Pictures of all shapes, text around them, two pictures, chunks of 48 with an edge inside a picture, cached
    prefixes, pruned beside unpruned beside text only: all equal to Transformers."""
    cases = told(family, tmp_path)
    tower = cases.pop("the tower")
    # The scheduler counts kept tokens, the tower works on all: no more at once than the scheduler would have allowed.
    assert tower["pass"] <= max(tower["budget"], tower["picture"])
    assert family in SMALL or tower["step"] > tower["budget"]
    if (turns := cases.pop("turns", None)) is not None:
        growing_chats_keep_their_prefix(turns)
    length = equal(cases)
    count = sum(name.startswith("budget/") for name in length)
    kept = [length[f"budget/{i}"] - length["budget/0"] + 1 for i in range(count)]
    assert kept == FAMILIES[family]
    assert cases["text around again/0"]["cached"] >= BLOCKS.get(family, 32)
    assert length["mixed/2"] > length["mixed/0"] > length["mixed/1"]
