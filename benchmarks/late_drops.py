"""Drops inside the language model behind FSR, at equal layer average: does an order without scores keep up with scores?

    OMP_NUM_THREADS=1 python benchmarks/late_drops.py [--questions 800] [--split test] [--json out.json]

In `mini` (four layers) 1.5 K tokens enter and 0.5 K are left from layer 2 on: on average K tokens per layer. Each
schedule enters with the same tokens of FSR and ends with the same number; only who chooses the ones that stay differs:
the order in which FSR chose them (`Late`), or the scores of FastV, SparseVLM, DART and PyramidDrop. FSR with K tokens
throughout is the row beside them. Differences to the best peer by exact McNemar on the same questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from fsr import FSR, prepare
from fsr.asking.answer import chat_batch
from fsr.asking.load import load
from fsr.evaluation.in_llm import before, generate_in_llm
from fsr.evaluation.question_set import build
from fsr.methods import Dart, FastV, Late, PyramidDrop, SparseVLM
from fsr.pipeline.encode import encode
from right_answers import compared, said_right

BATCH, LAYER = 32, 2


def schedules(average: int) -> dict[str, Any]:
    """Contenders whose tokens per decoder layer average `average` in a language model of four layers."""
    entering, last = 3 * average // 2, average // 2
    first = FSR(keep=entering)
    return {
        "fsr, one stage": FSR(keep=average),
        "fsr | late": first | Late({LAYER: last}),
        "fsr | late, none at the end": FSR(keep=4 * average // 3) | Late({3: 0}),
        "fsr | fastv": first | FastV(layer=LAYER, keep=last),
        "fsr | sparsevlm": first | SparseVLM(at=(LAYER,), keep=last),
        "fsr | dart": first | Dart(layer=LAYER, keep=last),
        "fsr | pyramiddrop": first | PyramidDrop(at=(LAYER,), keep=last),
    }


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Right answers of every schedule at both averages."""
    model, processor = load("mini", "cpu")
    found = build(args.split, 0, args.questions)
    contenders = {(k, name): m for k in (16, 8) for name, m in schedules(k).items()}
    right: dict[tuple[int, str], list[bool]] = {key: [] for key in contenders}
    generate = partial(model.generate, max_new_tokens=3, do_sample=False)
    for start in range(0, len(found), BATCH):
        items = found.items[start : start + BATCH]
        questions = [item.question.text for item in items]
        inputs = chat_batch(processor, [Image.fromarray(found.scenes[i.scene].image) for i in items], questions)
        seen = encode(model, inputs, *(before(m) for m in contenders.values()))
        for key, method in contenders.items():
            if isinstance(method, FSR):
                ready = prepare(model, method, inputs, questions, encoded=seen)
                new = generate(**ready)[:, ready["input_ids"].shape[1] :]
            else:
                new, _ = generate_in_llm(model, method, inputs, questions, "auto", seen, generate)
            right[key] += said_right(processor, new, [i.question.answer for i in items])
    rows = []
    for k in (16, 8):
        peers = {n: np.array(r) for (at, n), r in right.items() if at == k}
        best = max((n for n in peers if "late" not in n and "one stage" not in n), key=lambda n: peers[n].mean())
        for name, answers in peers.items():
            rows.append(
                {
                    "layer_average": k,
                    "schedule": name,
                    "accuracy": 100 * float(answers.mean()),
                    "against_best_peer": best,
                    "p": None if name == best else compared(answers, peers[best])[2],
                }
            )
    return {"model": "mini", "split": args.split, "questions": len(found), "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    out = run(args)
    print("| tokens per layer | schedule | accuracy, % | p against the best peer |\n|---:|---|---:|---:|")
    for row in out["rows"]:
        p = "best peer" if row["p"] is None else f"{row['p']:.2g}"
        print(f"| {row['layer_average']} | {row['schedule']} | {row['accuracy']:.1f} | {p} |")
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
