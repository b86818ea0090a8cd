"""FSR by source of relevance on an embedded benchmark, each paired with FSR without relevance (alpha = 0).

python benchmarks/relevance_sources.py --model mini-qwen3 --split test --sources embedding,first-layer,auto --json FILE

A source is what `relevance=` takes: first-layer, embedding, a file of `fsr calibrate` (the text tower of `mini` is
thereby ignored), or auto, the model's default. p is exact McNemar's over the questions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fsr.asking.load import load
from fsr.evaluation.question_set import build
from fsr.evaluation.record import Outcome
from fsr.evaluation.runner import Runner
from fsr.evaluation.score import plain
from fsr.evaluation.trials import Trial
from fsr.methods import FSR
from right_answers import compared


def main() -> None:
    """Print one line per source and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-qwen3")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--keep", default="16,8")
    parser.add_argument("--sources", default="first-layer,embedding")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, processor = load(args.model, "cpu")
    questions = build(args.split, 0, args.questions, world="mini" if args.model == "mini" else "native")
    answers = [plain(item.question.answer) for item in questions.items]

    def right(found: list[Outcome]) -> np.ndarray:
        return np.array([plain(o.answer) == a for o, a in zip(found, answers, strict=True)])

    keeps = [int(k) for k in args.keep.split(",")]
    rows: list[dict[str, Any]] = []
    without: dict[int, np.ndarray] = {}
    for source in ("none", *args.sources.split(",")):
        # One for each: what it scored with one source is not asked again.
        runner = Runner(model, processor, questions, relevance=source)
        for keep in keeps:
            method = FSR(keep=keep, relevance="none") if source == "none" else FSR(keep=keep)
            got = right(runner.run([Trial(source, method)])[0])
            base = without.setdefault(keep, got)
            gains, losses, p = compared(got, base)
            row = {"source": source, "keep": keep, "accuracy": round(100 * float(got.mean()), 2)}
            row |= {"read_from": runner.source}
            row |= {"gains": gains, "losses": losses, "p": p}
            rows.append(row)
            print(row, flush=True)
    if args.json:
        about = {"model": args.model, "split": args.split, "questions": len(questions), "sha256": questions.sha256}
        about |= {"fsr": asdict(FSR(keep=1))}
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
