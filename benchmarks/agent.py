"""An agent's prompt that grows by a screenshot a turn, at true size: tokens, KV cache and time, unpruned and pruned.

    OMP_NUM_THREADS=1 python benchmarks/agent.py --config qwen3-vl-2b [--at 20] [--size 512 768] [--layers 4]
        [--json out.json]

The model has random weights, which cost the same time. For every turn of `--at` the prompt of that turn is prefilled
whole: unpruned, with one budget for all pictures, and by age (`by_age`, with the total of the one budget); then by age
with the KV cache of the turn before it (`Conversation`). Pictures are encoded before; how long the tower takes for
one stands beside. Two different screenshots alternate: time does not depend on what they show. On a
CPU times are processor time, which other programs on the machine change little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from transformers.utils import logging

from fsr import FSR, prepare
from fsr.methods import by_age
from fsr.methods.base import Method
from fsr.methods.picture_budgets import KeepFor
from fsr.pipeline.conversation import Conversation
from fsr.pipeline.encode import EncodedPrompt, encode
from fsr.pipeline.kv_cache import cache_of
from fsr.profiling.configs import named
from fsr.profiling.inputs import synthetic
from fsr.profiling.memory import cache_bytes
from fsr.profiling.random_weights import random_model, shorten
from fsr.profiling.visual import visual

BY_AGE = by_age(newest=0.5, older=0.1, oldest=32)
ASK = 40  # text tokens of a turn
DIFFERENT = 2


def prompt(parts: list[dict[str, Any]], turns: int) -> dict[str, Any]:
    """The prompt of a turn: the parts of all turns so far, one behind the other."""
    chosen = [parts[i % len(parts)] for i in range(turns)]
    return {n: torch.cat([p[n] for p in chosen], int(t.shape[0] == 1 and t.shape[1] > 3)) for n, t in parts[0].items()}


def same_total(keep: KeepFor, turns: int, tokens: int) -> float:
    """The share that, given to every picture, keeps as many tokens as `keep` does in a turn."""
    kept = sum(FSR(keep=1).budget(tokens, keep(i, turns, tokens, None)) for i in range(turns))
    return kept / (turns * tokens)


class Clock:
    """Milliseconds of processor time (all threads) of the first forward inside a `with` block: of the whole model, and
    of its language layers. On a GPU, where the processor waits, wall-clock time."""

    def __init__(self, model: Any) -> None:
        self.modules = (model, model.get_decoder())
        self.now = process_time if model.device.type == "cpu" else perf_counter

    def __enter__(self) -> Clock:
        self.times: list[list[float]] = [[], []]
        self._hooks = []
        for module, times in zip(self.modules, self.times):
            note = partial(_note, self.now, times)
            self._hooks += [module.register_forward_pre_hook(note), module.register_forward_hook(note)]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self.ms, self.layers_ms = (1e3 * (times[1] - times[0]) for times in self.times)


def _note(now: Callable[[], float], times: list[float], *_: Any) -> None:
    if now is perf_counter:
        torch.cuda.synchronize()
    times.append(now())


def turn(
    model: Any, parts: list[dict[str, Any]], seen: EncodedPrompt, at: int, tokens: int, rounds: int
) -> dict[str, Any]:
    """All rows of one turn."""
    share = same_total(BY_AGE, at, tokens)
    methods: dict[str, Method] = {
        "unpruned": FSR(keep=1.0, relevance="none"),
        "one budget": FSR(keep=share, relevance="none"),
        "by age": FSR(keep=BY_AGE, relevance="none"),
    }
    whole = prompt(parts, at)
    encoded = seen.take([i % len(parts) for i in range(at)])
    ready = {n: prepare(model, m, whole, encoded=encoded, question_for="newest") for n, m in methods.items()}
    rows: dict[str, dict[str, Any]] = {n: {"ms": [], "layers_ms": []} for n in [*ready, "by age, continued"]}
    for _ in range(rounds):
        for name, prepared in ready.items():
            with Clock(model) as clock:
                output = model(**prepared.inputs, logits_to_keep=1, use_cache=True)
            row = rows[name]
            row["ms"].append(clock.ms)
            row["layers_ms"].append(clock.layers_ms)
            row["kv_MiB"] = cache_bytes(cache_of(output)) / 2**20
            row |= {"visual_tokens": prepared.report.tokens_after, "columns": prepared.report.length_after}
            del output
            print(at, name, round(clock.ms), "ms", file=sys.stderr, flush=True)
        if at > 1:
            talk = Conversation(model, methods["by age"])
            talk.generate(**prompt(parts, at - 1), max_new_tokens=1, do_sample=False)
            with Clock(model) as clock:
                talk.generate(**whole, max_new_tokens=1, do_sample=False)
            row = rows["by age, continued"]
            row["ms"].append(clock.ms)
            row["layers_ms"].append(clock.layers_ms)
            assert talk.last is not None
            row |= {"visual_tokens": talk.last.tokens_after, "columns": talk.last.length_after - talk.reused}
            print(at, "by age, continued", round(clock.ms), "ms", file=sys.stderr, flush=True)
    rows = {n: row for n, row in rows.items() if row["ms"]}
    for row in rows.values():
        row |= {f"all_{n}": row[n] for n in ("ms", "layers_ms")} | {
            n: statistics.median(row[n]) for n in ("ms", "layers_ms")
        }
    base = rows["unpruned"]
    for row in rows.values():
        row |= {"times_faster": base["ms"] / row["ms"], "layers_times_faster": base["layers_ms"] / row["layers_ms"]}
        if "kv_MiB" in row:
            row["kv_smaller"] = base["kv_MiB"] / row["kv_MiB"]
            row["columns_fewer"] = base["columns"] / row["columns"]
    return {"turn": at, "share_of_one_budget": share, "rows": rows}


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every turn that was asked for."""
    config = named(args.config)
    if args.layers:
        shorten(config, args.layers)
    size = tuple(args.size)
    model = random_model(config, args.device, torch.bfloat16)
    picture = visual(config, size)
    parts = [
        synthetic(config, picture, size=size, text=ASK, dtype=torch.bfloat16, device=args.device, seed=i)
        for i in range(DIFFERENT)
    ]
    method, both = FSR(keep=1, relevance="none"), prompt(parts, len(parts))
    encode(model, parts[0], method, relevance="none")  # warm
    now = process_time if args.device == "cpu" else perf_counter
    began = now()
    encode(model, parts[0], method, relevance="none")
    tower = 1e3 * (now() - began)
    print("tower", round(tower), "ms", file=sys.stderr, flush=True)
    seen = encode(model, both, method, relevance="none")
    return {
        "config": args.config,
        "language_layers": config.get_text_config().num_hidden_layers,
        "size": list(size),
        "tokens_per_picture": picture.tokens,
        "text_tokens_per_turn": ASK,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": args.rounds,
        "tower_ms_per_picture": tower,
        "turns": [turn(model, parts, seen, at, picture.tokens, args.rounds) for at in args.at],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="qwen3-vl-2b")
    parser.add_argument("--layers", type=int, help="build only so many language layers")
    parser.add_argument("--at", type=int, nargs="+", default=[20], metavar="TURN", help="turns to measure")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 768), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    out = measure(args)
    for found in out["turns"]:
        print(f"turn {found['turn']}, one budget: {found['share_of_one_budget']:.3f}")
        for name, row in found["rows"].items():
            print(f"  {name}:", {k: round(v, 2) for k, v in row.items() if isinstance(v, int | float)})
    print("tower, one picture:", round(out["tower_ms_per_picture"]), "ms")
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
