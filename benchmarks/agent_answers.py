"""Answers about the newest of several pictures at one total of tokens: one budget for all, against budgets by age.

    OMP_NUM_THREADS=1 python benchmarks/agent_answers.py [--model mini] [--turns 4] [--talks 800] [--json out.json]

A conversation is a question and its answer about each of `--turns` scenes; the last one is asked. Every question of the
test split is the last of one conversation, behind scenes that came before it in the set. Budgets go by age as in
`agent.py`; the one budget is the share that keeps as many tokens in all. Difference by exact McNemar.
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

from agent import BY_AGE, same_total
from fsr import FSR, prepare
from fsr.asking.load import load, world_of
from fsr.evaluation.question_set import Item, QuestionSet, build
from fsr.pipeline.encode import encode
from right_answers import answered_right, compared

BATCH, TOKENS = 16, 144


def conversations(found: QuestionSet, turns: int) -> list[list[Item]]:
    """For every question: the latest questions about the `turns` - 1 scenes before its own, then itself."""
    latest: dict[int, Item] = {}
    talks = []
    for item in found.items:
        before = [latest[scene] for scene in sorted(latest) if scene != item.scene][1 - turns :]
        latest[item.scene] = item
        if len(before) == turns - 1:
            talks.append([*before, item])
    return talks


def chat(found: QuestionSet, talk: list[Item]) -> list[dict[str, Any]]:
    """The messages of a conversation; the last question is open."""
    messages: list[dict[str, Any]] = []
    for item in talk:
        picture = {"type": "image", "image": found.picture(item.scene)}
        messages.append({"role": "user", "content": [picture, {"type": "text", "text": item.question.text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": item.question.answer}]})
    return messages[:-1]


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Right answers of all three."""
    model, processor = load(args.model, "cpu")
    processor.tokenizer.model_max_length = 10**6
    found = build("test", 0, 2000, world_of(model.config))
    talks = conversations(found, args.turns)
    talks = talks[:: max(1, len(talks) // args.talks)][: args.talks]
    share = same_total(BY_AGE, args.turns, TOKENS)
    methods = {"unpruned": FSR(keep=1.0), "one budget": FSR(keep=share), "by age": FSR(keep=BY_AGE)}
    right: dict[str, list[bool]] = {name: [] for name in methods}
    tokens = dict.fromkeys(methods, 0)
    for start in range(0, len(talks), BATCH):
        some = talks[start : start + BATCH]
        inputs = processor.apply_chat_template(
            [chat(found, talk) for talk in some],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        questions = [talk[-1].question.text for talk in some]
        seen = encode(model, inputs, *methods.values())
        for name, method in methods.items():
            ready = prepare(model, method, inputs, questions, processor=processor, question_for="newest", encoded=seen)
            right[name] += answered_right(model, processor, ready, [talk[-1].question.answer for talk in some])
            tokens[name] += ready.report.tokens_after
    gained, lost, p = compared(np.array(right["by age"]), np.array(right["one budget"]))
    return {
        "model": args.model,
        "turns": args.turns,
        "talks": len(talks),
        "share_of_one_budget": share,
        "tokens_per_talk": {name: n / len(talks) for name, n in tokens.items()},
        "accuracy": {name: 100 * sum(r) / len(r) for name, r in right.items()},
        "by_age_gains": gained,
        "by_age_loses": lost,
        "p": p,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", choices=("mini", "mini-qwen3"))
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--talks", type=int, default=800)
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
