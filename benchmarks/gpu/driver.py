"""Runs the steps one after another, each in a process of its own with a time box, and writes the page as it goes.

A step that is cut off, crashes or finds no Triton loses nothing but itself. What a step measured is on disk as soon as
it has it: every step writes its JSON anew after each part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import write_page

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """name: of its JSON file and its program step_<name>.py. share: of the time that is left when it starts."""

    name: str
    share: float
    what: str


# By worth: a run that is cut off loses the end of this list.
STEPS = (
    Step("tests", 0.2, "the tests that only a CUDA device can run, and compute-sanitizer where it is installed"),
    Step("selection", 0.25, "what one selection costs, against plain loops and against the floor"),
    Step("models", 0.75, "models at true size with random weights: stages, first token, decoding, memory"),
    Step("shares", 1.0, "the signals' share of the call, and a compiled language model"),
    Step("training", 1.0, "steps per second of `fsr train`, with the minutes that are left"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for JSON files and page.md")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    parser.add_argument(
        "--pretend", action="store_true", help="every step on the CPU with tiny sizes: no number counts"
    )
    parser.add_argument("--only", help="comma-separated: " + ", ".join(s.name for s in STEPS))
    parser.add_argument("--train", action="store_true", help="use what is left for training the embedded model")
    args = parser.parse_args()
    chosen = _chosen(args.only, args.train or args.pretend)
    if chosen is None:
        names = ", ".join(s.name for s in STEPS)
        print(f"--only {args.only!r}: give some of {names}, separated by commas.", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for stale in args.out.glob("*.json"):
        stale.unlink()
    end = time.monotonic() + 60 * args.minutes
    states: dict[str, dict[str, Any]] = {}
    for step in chosen:
        left = end - time.monotonic()
        states[step.name] = _run(step, args.out, max(5.0, left * step.share) if left > 5 else 0.0, args.pretend)
        (args.out / "steps.json").write_text(json.dumps(states, indent=1) + "\n", encoding="utf-8")
        write_page(args.out, pretend=args.pretend)
        print(f"{step.name}: {states[step.name]['state']} in {states[step.name]['seconds']:.0f} s", flush=True)
    print(f"\n{(args.out / 'page.md').read_text(encoding='utf-8')}")
    return int(any(s["state"] not in ("done", "cut off") for s in states.values()))


def _chosen(only: str | None, train: bool) -> list[Step] | None:
    if only is None:
        return [s for s in STEPS if train or s.name != "training"]
    wanted = only.split(",")
    if not set(wanted) <= {s.name for s in STEPS}:
        return None
    return [s for s in STEPS if s.name in wanted]


def _run(step: Step, out: Path, seconds: float, pretend: bool) -> dict[str, Any]:
    """What became of it: done, cut off (its file holds what it had), failed, or no time left."""
    if not seconds:
        return {"what": step.what, "state": "no time left", "seconds": 0.0, "log": ""}
    program = [sys.executable, str(HERE / f"step_{step.name}.py"), "--out", str(out / f"{step.name}.json")]
    # The step itself stops starting new parts a little earlier, so that it is rarely cut off.
    program += ["--seconds", f"{0.92 * seconds:.0f}"] + ["--pretend"] * pretend
    began = time.monotonic()
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=seconds, cwd=HERE.parents[1])
        state, log = "done" if done.returncode == 0 else "failed", done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        state = "cut off"
        log = "".join(
            part.decode(errors="replace") if isinstance(part, bytes) else part or ""
            for part in (error.stdout, error.stderr)
        )
    (out / f"{step.name}.log").write_text(log, encoding="utf-8")
    return {"what": step.what, "state": state, "seconds": time.monotonic() - began, "log": log[-1500:]}


if __name__ == "__main__":
    sys.exit(main())
