"""Smaller pictures, fewer tokens of large pictures, or both, at equal K: the embedded model of native resolution.

    OMP_NUM_THREADS=1 python benchmarks/downscale.py [--keep 48 16] [--validation 320] [--test 800] [--json out.json]

Scenes of `mini-qwen3` have 96 to 400 visual tokens. For every K three ways to have at most K of them: `Downscale` alone
(a picture of K tokens), `FSR` alone (K tokens of the whole picture), both (a picture of 2, 4 or 8 K tokens, K of them
chosen). Which of the three sizes is decided on the validation split; the test split reports. Differences to the
better of the two alone by exact McNemar.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from fsr import FSR, prepare, prune
from fsr.asking.chat import chat_batch
from fsr.asking.load import load
from fsr.evaluation.question_set import Split, build
from fsr.methods import Downscale
from fsr.pipeline.encode import encode
from right_answers import answered_right, compared

BATCH, TOKEN = 16, 16 * 16  # pixels of a visual token
WHOLE, TIMES = 10**6, (2, 4, 8)


@torch.inference_mode()
def answers(
    model: Any, processor: Any, split: Split, questions: int, plan: dict[int, list[float]]
) -> dict[tuple[int, float], tuple[np.ndarray, float]]:
    """For pictures of at most so many pixels and each budget: which questions were answered right, and the mean K."""
    found = build(split, 0, questions, "native")
    right: dict[tuple[int, float], list[bool]] = {(p, k): [] for p, keeps in plan.items() for k in keeps}
    tokens = dict.fromkeys(right, 0)
    for start in range(0, len(found), BATCH):
        items = found.items[start : start + BATCH]
        texts = [item.question.text for item in items]
        for pixels, keeps in plan.items():
            with prune(model, Downscale(pixels=pixels), processor=processor):
                inputs = chat_batch(processor, [found.picture(item.scene) for item in items], texts)
            methods = {keep: FSR(keep=keep) for keep in keeps}
            seen = encode(model, inputs, *methods.values())
            for keep, method in methods.items():
                ready = prepare(model, method, inputs, texts, processor=processor, encoded=seen)
                right[pixels, keep] += answered_right(model, processor, ready, [i.question.answer for i in items])
                tokens[pixels, keep] += ready.report.tokens_after
    return {key: (np.array(r), tokens[key] / len(r)) for key, r in right.items()}


def planned(keeps: list[int], times: dict[int, tuple[int, ...]]) -> dict[int, list[float]]:
    """Pixels to budgets: alone, whole, and both at the sizes of `times`."""
    plan: dict[int, list[float]] = {WHOLE: [1.0, *keeps]}
    for keep in keeps:
        plan.setdefault(keep * TOKEN, []).append(1.0)
        for many in times[keep]:
            plan.setdefault(many * keep * TOKEN, []).append(keep)
    return plan


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Validation chooses, test reports."""
    model, processor = load("mini-qwen3", "cpu")
    tried = answers(
        model, processor, "validation", args.validation, planned(args.keep, dict.fromkeys(args.keep, TIMES))
    )
    best = {k: max(TIMES, key=lambda m: tried[m * k * TOKEN, k][0].mean()) for k in args.keep}
    seen = answers(model, processor, "test", args.test, planned(args.keep, {k: (m,) for k, m in best.items()}))
    rows = []
    for k in args.keep:
        alone = {"downscale": seen[k * TOKEN, 1.0], "fsr": seen[WHOLE, k]}
        both = seen[best[k] * k * TOKEN, k]
        better = max(alone, key=lambda n: alone[n][0].mean())
        for name, (right, mean) in {**alone, "downscale | fsr": both}.items():
            rows.append({"keep": k, "method": name, "accuracy": 100 * float(right.mean()), "tokens": mean})
        rows[-1] |= {"pixels": best[k] * k * TOKEN, "against": better, "p": compared(both[0], alone[better][0])[2]}
    return {
        "model": "mini-qwen3",
        "questions": {"validation": args.validation, "test": args.test},
        "unpruned": 100 * float(seen[WHOLE, 1.0][0].mean()),
        "tokens_unpruned": seen[WHOLE, 1.0][1],
        "validation": [
            {"pixels": p, "keep": k, "accuracy": 100 * float(right.mean()), "tokens": mean}
            for (p, k), (right, mean) in tried.items()
        ],
        "rows": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=int, nargs="+", default=[48, 16])
    parser.add_argument("--validation", type=int, default=320)
    parser.add_argument("--test", type=int, default=800)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    out = run(args)
    print(json.dumps(out, indent=1))
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
