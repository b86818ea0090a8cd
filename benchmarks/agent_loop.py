"""Twenty turns on an embedded model: tokens and time per turn, each compared with a fresh run of the same prompt.

    OMP_NUM_THREADS=1 python benchmarks/agent_loop.py [--model mini] [--turns 20] [--json out.json]

Every turn adds a scene and a question, and sends the whole prompt. Unpruned and with one budget for all pictures each
turn is a call of its own; by age `Conversation` goes on from the turn before, and its answer and kept tokens must equal
those of a call of its own. Times are processor time of the turn, tower included.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from time import process_time
from typing import Any

import torch
from transformers.utils import logging

from agent import same_total
from fsr import FSR, prune
from fsr.asking.load import load, world_of
from fsr.evaluation.question_set import build
from fsr.methods import by_age
from fsr.pipeline.conversation import Conversation

QUESTION = "what is the background ?"
# Of the 144 tokens of a picture of `mini`: 72, 14 and 8.
BY_AGE = by_age(newest=0.5, older=0.1, oldest=8)


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row per turn."""
    model, processor = load(args.model, "cpu")
    processor.tokenizer.model_max_length = 10**6
    found = build("test", 0, 400, world_of(model.config))
    aged = FSR(keep=BY_AGE)
    talk = Conversation(model, aged, processor=processor)
    messages: list[dict[str, Any]] = []
    rows, settings = [], {"max_new_tokens": 3, "do_sample": False}
    for turn in range(1, args.turns + 1):
        content = [{"type": "image", "image": found.picture(turn - 1)}, {"type": "text", "text": QUESTION}]
        messages.append({"role": "user", "content": content})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        row: dict[str, Any] = {"turn": turn, "columns": inputs["input_ids"].shape[1]}
        began = process_time()
        out = talk.generate(QUESTION, **inputs, **settings)
        row |= {"by_age_ms": 1e3 * (process_time() - began), "reused": talk.reused}
        assert talk.last is not None
        row |= {"by_age_tokens": talk.last.tokens_after, "by_age_columns": talk.last.length_after}
        one = FSR(keep=same_total(BY_AGE, turn, 144))
        for name, method in (("unpruned", None), ("one_budget", one), ("fresh", aged)):
            block = (
                nullcontext() if method is None else prune(model, method, processor=processor, question_for="newest")
            )
            extra = {} if method is None else {"question": QUESTION}
            began = process_time()
            with block as pruned:
                expected = model.generate(**inputs, **extra, **settings)
            row[f"{name}_ms"] = 1e3 * (process_time() - began)
            if pruned is not None:
                row[f"{name}_tokens"] = pruned.last.tokens_after
        same = all(torch.equal(a.rows, b.rows) for a, b in zip(talk.last.selections, pruned.last.selections))
        row["equal"] = bool(torch.equal(out, expected) and same)
        rows.append(row)
        answer = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        print({k: round(v) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return {"model": args.model, "rows": rows, "all_equal": all(row["equal"] for row in rows)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", choices=("mini", "mini-qwen3"))
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    out = run(args)
    print("equal to a fresh run in every turn:", out["all_equal"])
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0 if out["all_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
