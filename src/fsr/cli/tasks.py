"""`fsr tasks`: the task files for lmms-eval, the embedded benchmark among them."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr tasks`."""
    parser.add_argument("folder", help="where to write them: what to give to lmms-eval's --include_path")
    parser.add_argument("--questions", type=int, default=2000, help="of the embedded benchmark, a multiple of 8")
    parser.add_argument("--seed", type=int, default=0, help="of that question set")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="of that question set")


def run(args: argparse.Namespace) -> int:
    """Write and say what was written."""
    from fsr.evaluation.question_set import build
    from fsr.evaluation.task_files import write_tasks

    questions = build(args.split, args.seed, args.questions)
    for name in write_tasks(Path(args.folder).expanduser(), questions):
        print(Path(args.folder) / name)
    if questions.note:
        print(f"note  {questions.note}")
    return 0
