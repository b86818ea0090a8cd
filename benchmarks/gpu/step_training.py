"""Step 5: how fast the embedded model trains on the device, with the minutes that are left: steps per second of every
stage of `fsr train`. The checkpoints stay beside the result, so that a longer run can go on from them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fsr.minivlm.train import STAGES, Recipe
from part import Parts


def stage(name: str, folder: Path, parts: Parts) -> dict[str, Any]:
    """One stage of the recipe, shortened."""
    scale = 0.002 if parts.pretend else 0.05
    program = [sys.executable, "-m", "fsr", "train", "--stage", name, "--scale", str(scale), "--out", str(folder)]
    program += ["--device", parts.device.type]
    began = time.monotonic()
    done = subprocess.run(program, capture_output=True, text=True, timeout=max(10, parts.left))
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-400:])
    steps = getattr(Recipe().scaled(scale), "symbols_stop" if name == "symbols" else name)
    return {"steps": steps, "seconds": seconds, "steps_per_second": steps / seconds}


def main() -> int:
    parts = Parts(__doc__ or "")
    folder = parts.out.with_suffix("")
    for name in STAGES[:1] if parts.pretend else STAGES:
        parts.run(name, lambda name=name: stage(name, folder, parts))
    return int(parts.failed)


if __name__ == "__main__":
    sys.exit(main())
