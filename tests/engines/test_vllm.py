"""The vLLM plug-in in the real engine: greedy tokens equal to those of Transformers pruned by `fsr.prune`.

Each engine lives in a process of its own (`vllm_cases.py`), which records what it answered beside the reference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")

HERE = Path(__file__).resolve().parent
# Log-probabilities of the chosen tokens, float32: what the order of summation leaves.
GAP = 1e-4


def told(suite, folder):
    program = [sys.executable, str(HERE / "vllm_cases.py"), suite, str(folder)]
    done = subprocess.run(
        program, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]
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
        "negative": "fsr_keep", "share": "fsr_keep", "text": "not a number", "unknown": "use fsr_keep and fsr_question",
        "empty question": "fsr_question is empty", "no question": "no question in the prompt",
    }  # fmt: skip
    for name, hint in hints.items():
        assert hint in cases[f"{name}/refused"]["error"]
    assert "after bad requests/0" in length and "pruned outside/1" in length


def test_a_peer_without_a_question_in_chunks(tmp_path):
    """VisionZip on mini, prompts cut into chunks of 32: another question reuses the picture's cached prefix."""
    cases = told("mini_visionzip", tmp_path)
    equal(cases)
    assert cases["other question/0"]["cached"] >= 32
    assert "encoder cache size" in cases["larger than the encoder's budget/refused"]["error"]


def test_llava_next(tmp_path):
    """Tiles, unpadded canvases and newlines; budgets around the number of patches that are no newline."""
    length = equal(told("llava_next", tmp_path))
    kept = [length[f"budget/{i}"] - length["budget/0"] + 1 for i in range(7)]
    assert kept == [1, 36, 39, 40, 41, 72, 72]


def test_qwen(tmp_path):
    """Windows and three-dimensional positions, in chunks of 48, again from the cache, beside a whole video."""
    cases = told("qwen", tmp_path)
    length = equal(cases)
    assert [length[f"budget/{i}"] - length["budget/0"] + 1 for i in range(6)] == [1, 10, 31, 32, 32, 32]
    assert cases["long text/1"]["cached"] >= 32
    assert "video beside a picture/0" in length
