"""An agent's prompt that grows by a screenshot a turn: tokens, KV cache and prefill per turn, unpruned and pruned.

    python benchmarks/agent.py --config qwen3-vl-8b [--layers 4] [--turns 20] [--size 672 448] [--json out.json]
    python benchmarks/agent.py --answers mini [--talks 50] [--turns 4]

The first form builds the language model at true size with random weights and measures the last turn: a fresh prefill of
the whole prompt unpruned, with one budget for all, and by age; then by age with the KV cache of the turn before
(`Conversation`). The second asks the embedded model about the newest of many scenes and counts right answers at the
same total of tokens: one budget for every picture against budgets by age.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from transformers.utils import logging

from fsr import FSR, prepare, prune
from fsr.asking.load import load
from fsr.evaluation.question_set import build
from fsr.methods import by_age
from fsr.methods.base import Method
from fsr.pipeline.conversation import Conversation
from fsr.pipeline.encode import encode
from fsr.pipeline.kv_cache import cache_of
from fsr.profiling.configs import named
from fsr.profiling.inputs import synthetic
from fsr.profiling.memory import cache_bytes
from fsr.profiling.random_weights import random_model, shorten
from fsr.profiling.visual import visual

BY_AGE = by_age(newest=0.5, older=0.1, oldest=32)
ASK = 40  # text tokens of a turn


def prompts(config: Any, turns: int, size: tuple[int, int], dtype: torch.dtype) -> list[dict[str, Any]]:
    """The prompts of turns 1 to `turns`: each is the one before, a picture and a question longer."""
    picture = visual(config, size)
    parts = [synthetic(config, picture, size=size, text=ASK, dtype=dtype, seed=i) for i in range(turns)]
    names = list(parts[0])
    out = []
    for turn in range(1, turns + 1):
        along = {n: 1 if parts[0][n].dim() == 2 and n not in ("pixel_values", "image_grid_thw") else 0 for n in names}
        out.append({n: torch.cat([p[n] for p in parts[:turn]], along[n]) for n in names})
    return out


def same_total(turns: int, tokens: int) -> float:
    """The share that, given to every picture, keeps as many tokens as `by_age` does in the last turn."""
    kept = sum(FSR(keep=1).budget(tokens, BY_AGE(i, turns, tokens, None)) for i in range(turns))
    return kept / (turns * tokens)


@torch.inference_mode()
def prefill(model: Any, arguments: dict[str, Any]) -> tuple[float, Any]:
    """Milliseconds of one forward over a prompt whose pictures are encoded, and its output."""
    began = perf_counter()
    output = model(**arguments, logits_to_keep=1, use_cache=True)
    return 1e3 * (perf_counter() - began), output


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The last turn of a conversation at true size."""
    config = named(args.config)
    if args.layers:
        shorten(config, args.layers)
    model = random_model(config, args.device, torch.bfloat16)
    made = prompts(config, args.turns, tuple(args.size), torch.bfloat16)
    tokens = visual(config, tuple(args.size)).tokens
    seen = encode(model, made[-1], FSR(keep=1, relevance="none"), relevance="none")
    share = same_total(args.turns, tokens)
    methods: dict[str, Method] = {
        "unpruned": FSR(keep=1.0, relevance="none"),
        f"one budget ({share:.3f})": FSR(keep=share, relevance="none"),
        "by age": FSR(keep=BY_AGE, relevance="none"),
    }
    ready = {n: prepare(model, m, made[-1], encoded=seen, question_for="newest") for n, m in methods.items()}
    rows: dict[str, dict[str, Any]] = {n: {"ms": []} for n in ready}
    for _ in range(args.rounds):
        for name, prepared in ready.items():
            ms, output = prefill(model, prepared.inputs)
            row = rows[name]
            row["ms"].append(ms)
            row["kv_MiB"] = cache_bytes(cache_of(output)) / 2**20
            row["visual_tokens"], row["columns"] = prepared.report.tokens_after, prepared.report.length_after
    talk = Conversation(model, methods["by age"])
    talk.generate(**made[-2], max_new_tokens=1, do_sample=False)
    clock: list[float] = []
    handles = [
        model.get_decoder().register_forward_pre_hook(lambda *a: clock.append(perf_counter())),
        model.get_decoder().register_forward_hook(lambda *a: clock.append(perf_counter())),
    ]
    talk.generate(**made[-1], max_new_tokens=1, do_sample=False)
    for handle in handles:
        handle.remove()
    assert talk.last is not None
    rows["by age, continued"] = {
        "ms": [1e3 * (clock[1] - clock[0])],
        "visual_tokens": talk.last.tokens_after,
        "columns": talk.last.length_after - talk.reused,
    }
    base = sorted(rows["unpruned"]["ms"])[args.rounds // 2]
    for row in rows.values():
        row["ms"] = sorted(row["ms"])[len(row["ms"]) // 2]
        row["times_faster"] = base / row["ms"]
        if "kv_MiB" in row:
            row["kv_smaller"] = rows["unpruned"]["kv_MiB"] / row["kv_MiB"]
            row["columns_fewer"] = rows["unpruned"]["columns"] / row["columns"]
    return {
        "config": args.config,
        "language_layers": config.get_text_config().num_hidden_layers,
        "turns": args.turns,
        "tokens_per_picture": tokens,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


@torch.inference_mode()
def answers(args: argparse.Namespace) -> dict[str, Any]:
    """Right answers of an embedded model about the newest of `turns` scenes, each asked about in its own turn."""
    model, processor = load(args.answers, "cpu")
    processor.tokenizer.model_max_length = 10**6
    found = build("test", 0, 2000)
    items = {item.scene: item for item in found.items}
    scenes = sorted(items)[: args.talks * args.turns]
    tokens = 144
    share = same_total(args.turns, tokens)
    methods = {"unpruned": None, "one budget": FSR(keep=share), "by age": FSR(keep=BY_AGE)}
    right: dict[str, list[bool]] = {name: [] for name in methods}
    for start in range(0, len(scenes) - args.turns + 1, args.turns):
        asked = [items[n] for n in scenes[start : start + args.turns]]
        chat: list[dict[str, Any]] = []
        for item in asked:
            picture = {"type": "image", "image": Image.fromarray(found.scenes[item.scene].image)}
            chat.append({"role": "user", "content": [picture, {"type": "text", "text": item.question.text}]})
            chat.append({"role": "assistant", "content": [{"type": "text", "text": item.question.answer}]})
        inputs = dict(
            processor.apply_chat_template(
                chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
        for name, method in methods.items():
            block = nullcontext() if method is None else prune(model, method, question_for="newest")
            extra = {} if method is None else {"question": asked[-1].question.text}
            with block:
                out = model.generate(**inputs, **extra, max_new_tokens=4, do_sample=False)
            said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
            right[name].append(said == asked[-1].question.answer)
    return {
        "model": args.answers,
        "turns": args.turns,
        "talks": len(right["unpruned"]),
        "share_of_one_budget": share,
        "accuracy": {name: 100 * sum(r) / len(r) for name, r in right.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="qwen3-vl-8b")
    parser.add_argument("--layers", type=int, help="build only so many language layers")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(448, 672), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--answers", metavar="MODEL", help="count right answers of an embedded model instead")
    parser.add_argument("--talks", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    out = answers(args) if args.answers else measure(args)
    for name, row in out.get("rows", {"": out}).items():
        print(name, {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
