"""`benchmarks/gpu/run` rehearsed on the CPU: every step runs through the code that a GPU will run, and the page finds
every number that was promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def gpu_scripts(monkeypatch):
    """Modules of the folder, importable as its own programs import them."""
    monkeypatch.syspath_prepend(str(GPU))
    yield
    for name in ("bars", "page", "missing", "part"):
        sys.modules.pop(name, None)


def rehearse(out, *more):
    program = ["bash", str(GPU / "run"), "--pretend", "--minutes", "8", "--out", str(out), *more]
    return subprocess.run(
        program, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_every_step_runs_and_every_bar_can_be_read(tmp_path):
    done = rehearse(tmp_path)
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert {name: s["state"] for name, s in steps.items()} == dict.fromkeys(
        ("tests", "selection", "models", "shares", "training"), "done"
    ), done.stdout[-3000:]
    page = (tmp_path / "page.md").read_text()
    bars = page.split("## Bars")[1].split("##")[0]
    assert "readable" in bars and "not measured" not in bars, bars
    assert "A rehearsal" in page and "met |" not in bars
    assert page.rstrip().endswith("compute-sanitizer is not installed") or page.rstrip().endswith("- nothing"), page[
        -500:
    ]


def test_unknown_steps_and_no_gpu_are_one_line(tmp_path):
    done = rehearse(tmp_path, "--only", "selektion")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "selection" in done.stderr


def test_a_part_that_fails_loses_only_itself(gpu_scripts, tmp_path, monkeypatch):
    from part import Parts

    monkeypatch.setattr(sys, "argv", ["step", "--out", str(tmp_path / "x.json"), "--pretend", "--seconds", "60"])
    parts = Parts("a step")

    def too_large():
        raise MemoryError("CUDA out of memory")

    assert parts.run("big", too_large) is None and parts.run("small", lambda: {"ms": 1.0}) == {"ms": 1.0}
    parts.end = 0
    assert parts.run("late", too_large) is None
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["big"]["error"] == "MemoryError: CUDA out of memory" and found["small"] == {"ms": 1.0}
    assert found["late"] == {"skipped": "no time left"} and parts.failed


def test_bars_are_met_missed_or_not_measured(gpu_scripts):
    from bars import BARS, ONE

    first, second = BARS[:2]
    fast = {"selection": {ONE: {"fsr": {"graph_ms": 0.2}, "cdpruner as a plain loop": {"called_ms": 1.0}}}}
    assert first.check(fast)[1:] == ("0.2", "met") and second.check(fast)[1:] == ("5", "**missed**")
    assert {bar.check({})[2] for bar in BARS} == {"not measured"}


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (None, ["transformers"]),
        (
            "transformers==5.17.0\nnumpy==2.5.2\npillow==12.0\nsafetensors==0.8.0\ntqdm==4.67\npytest==9.0\n",
            ["transformers", "hypothesis"],
        ),
        (
            "Transformers==5.24.0\nnumpy==2.5.2\npillow==12.0+cu13\nsafetensors==0.8.0\ntqdm==4.67\npytest==9.0\nhypothesis==6.155",
            [],
        ),
    ],
)
def test_what_a_machine_lacks(gpu_scripts, freeze, expected):
    import tomllib

    from missing import TESTS, missing

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [
        requirement.split("<")[0].split(">")[0].split("=")[0] for requirement in missing([*wanted, *TESTS], freeze)
    ]
    assert names == expected
