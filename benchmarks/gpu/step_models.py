"""Step 3: models at true size with random weights in bfloat16: stages, first token, decoding, memory, by method.

Weights are noise, so answers mean nothing; shapes, memory and time do not depend on them. `fsr.profiling` does the
measuring: the same code as `fsr profile`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from fsr.methods import get
from fsr.profiling.count_report import paper_table
from fsr.profiling.measure import Plan, measure
from fsr.profiling.measure_report import report
from fsr.profiling.workload import from_config
from part import Parts
from timing import about
from tiny import tiny, tiny_text_tower

METHODS = ("fsr", "cdpruner", "divprune", "fastv", "random")


@dataclass(frozen=True)
class Run:
    """A model and the budgets of the paper's tables at which it runs: tokens, or a share where the paper cuts shares.
    The first budget runs with every method, the others with FSR only."""

    config: str
    keeps: tuple[int | float, ...]


RUNS = (
    Run("llava-1.5-7b", (64, 128, 192)),
    Run("qwen2.5-vl-7b", (0.2, 0.1, 0.5)),
    Run("llava-next-7b", (320, 640, 960)),
    Run("qwen3-vl-8b", (0.2, 0.1)),
)


def methods_of(run: Run) -> tuple[Any, ...]:
    """The first budget with every method, the others with FSR."""
    first = tuple(get(name, keep=run.keeps[0]) for name in METHODS)
    return (*first, *(get("fsr", keep=keep) for keep in run.keeps[1:]))


def one(run: Run, parts: Parts, batch: int, seconds: float) -> dict[str, Any]:
    """Everything about one model at one batch size, as `fsr profile --json` prints it."""
    small = {"config": tiny(run.config), "text_tower": tiny_text_tower()} if parts.pretend else {}
    dtype = torch.float32 if parts.pretend else torch.bfloat16
    workload = from_config(run.config, device=parts.device, dtype=dtype, **small)
    chosen = methods_of(run) if batch == 1 else (get("fsr", keep=run.keeps[0]),)
    plan = Plan(
        chosen, (batch,), new_tokens=2 if parts.pretend else 8, rounds=1 if parts.pretend else 5, limit_s=seconds
    )
    return report(workload, plan, measure(workload, plan))


def main() -> int:
    logging.set_verbosity_error()
    parts = Parts(__doc__ or "")
    parts.run("about", lambda: about(parts.device))
    parts.run("table 7, counted", paper_table)
    for run in RUNS:
        parts.run(run.config, lambda run=run: one(run, parts, 1, min(60.0, parts.left / 2)))
    for run in RUNS[:2]:
        parts.run(f"{run.config}, batch 8", lambda run=run: one(run, parts, 8, min(30.0, parts.left / 2)))
    return int(parts.failed)


if __name__ == "__main__":
    sys.exit(main())
