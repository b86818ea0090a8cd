"""Step 1: `pytest -m cuda`, and compute-sanitizer on the Triton kernels where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from part import Parts

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/test_kernels_gpu.py", "tests/test_text_cache.py", "tests/test_cuda.py")


def told(program: list[str], seconds: float, **more: str) -> dict[str, Any]:
    """Exit status and the end of what a program printed; cut off after `seconds`."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, **more, "PYTHONPATH": path}
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=max(5, seconds), env=settings, cwd=ROOT)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        return {"status": "cut off", "end": text[-1500:]}
    return {"status": done.returncode, "end": (done.stdout + done.stderr)[-3000:]}


def tests(parts: Parts) -> dict[str, Any]:
    """The tests marked `cuda`. On a CPU they are collected and skip, each with its reason."""
    found = told([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *FILES], parts.left)
    found["summary"] = found["end"].strip().splitlines()[-1] if found["end"].strip() else ""
    if found["status"] != 0:
        parts.failed = True
    return found


def sanitizer(parts: Parts) -> dict[str, Any]:
    """memcheck and racecheck over a few small selections."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed"}
    out: dict[str, Any] = {}
    for check in ("memcheck", "racecheck"):
        program = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "benchmarks/gpu/small_selections.py"]
        out[check] = told(program, parts.left / 2)
        parts.failed |= out[check]["status"] not in (0, "cut off")
    return out


if __name__ == "__main__":
    parts = Parts(__doc__ or "")
    parts.run("tests", lambda: tests(parts))
    parts.run("sanitizer", lambda: sanitizer(parts))
    sys.exit(int(parts.failed))
