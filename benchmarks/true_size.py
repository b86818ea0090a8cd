"""The paper's models at true size with random weights: does pruning hold, and what does it save?

    python benchmarks/true_size.py [NAME ...] [--layers N] [--device auto] [--attention sdpa] [--out results.json]

For each model (default: LLaVA-1.5-7B, LLaVA-NeXT-7B at 672 x 672 with five tiles and 2880 tokens, Qwen2.5-VL-7B), in
bfloat16 from its
published config (`fsr.profiling.configs`):

* K = N: logits and greedy tokens equal to the unpruned model, bit for bit;
* prefill (one new token: vision tower, selection and language model) and peak memory at the paper's budgets.

Weights are noise, so answers mean nothing; shapes, memory and time do not depend on them. `--layers` builds fewer
language layers, to try
the script on a small machine. `--attention flash_attention_2` where the package is installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers.utils import logging

from fsr import FSR, ClipTwin, __version__, prune
from fsr.asking.load import pick_device
from fsr.device import synchronise
from fsr.profiling.configs import CONFIGS, named
from fsr.profiling.inputs import synthetic
from fsr.profiling.memory import PeakMemory, cache_bytes
from fsr.profiling.random_weights import random_model, random_twin, shorten
from fsr.profiling.visual import visual

# Budgets of the paper's tables: tokens, or shares kept where it cuts 50, 60, 80 and 90 %.
BUDGETS: dict[str, list[int | float]] = {
    "llava-1.5-7b": [192, 128, 64],
    "llava-next-7b": [960, 640, 320],
    "qwen2.5-vl-7b": [0.5, 0.4, 0.2, 0.1],
}
FIVE_TILES = [[672, 672]]
SIZE = {"llava-1.5-7b": (336, 336), "llava-next-7b": (672, 672), "qwen2.5-vl-7b": (1008, 1008)}


def build(name: str, layers: int | None, device: torch.device, attention: str) -> tuple[Any, dict[str, Any], Any]:
    """Model, one prompt of 80 text tokens and one picture, and what `prune` takes as relevance."""
    config = named(name)
    if layers is not None:
        shorten(config, layers)
    size = SIZE.get(name, (672, 672))
    if name.startswith("llava-next-7b"):
        config.image_grid_pinpoints = FIVE_TILES
    picture = visual(config, size)
    model = random_model(config, device, torch.bfloat16)
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    if name.startswith("llava-next-7b"):  # as `five_tiles` does it for a processor
        model.model.image_newline = None
        picture = replace(picture, tokens=5 * 576)
    inputs = synthetic(config, picture, size=size, text=80, dtype=torch.bfloat16, device=device)
    paired = config.vision_config.model_type == "clip_vision_model"
    twin: ClipTwin | str = random_twin(model.model.vision_tower, device) if paired else "auto"
    return model, inputs, twin


@torch.no_grad()
def run(model: Any, inputs: dict[str, Any], device: torch.device, rounds: int) -> dict[str, Any]:
    """Median prefill in ms over `rounds` after one warm-up, peak memory and bytes of the KV cache."""
    times: list[float] = []
    for _ in range(rounds + 1):
        synchronise(device)
        with PeakMemory(device) as memory:
            started = perf_counter()
            out = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
            synchronise(device)
            times.append(1e3 * (perf_counter() - started))
    peak = memory.peak
    return {
        "prefill_ms": round(statistics.median(times[1:]), 2),
        "peak_mib": None if peak is None else round(peak.total / 2**20, 1),
        "peak_above_weights_mib": None if peak is None else round(peak.above_start / 2**20, 1),
        "kv_cache_mib": round(cache_bytes(out.past_key_values) / 2**20, 2),
    }


@torch.no_grad()
def identity(model: Any, inputs: dict[str, Any], twin: Any, question: str) -> dict[str, bool]:
    """K = N against the unpruned model."""
    options = dict(max_new_tokens=4, do_sample=False)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **options)
    with prune(model, FSR(keep=1.0), relevance=twin):
        same_logits = torch.equal(model(**inputs, question=question).logits, logits)
        same_tokens = torch.equal(model.generate(**inputs, question=question, **options), tokens)
    return {"logits": same_logits, "tokens": same_tokens}


def one(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything about one model."""
    question = "what colour is the thing in the picture ?"
    model, inputs, twin = build(name, args.layers, device, args.attention)
    parameters = sum(p.numel() for p in model.parameters())
    result: dict[str, Any] = {
        "checkpoint": CONFIGS[name].checkpoint,
        "language_layers": model.config.get_text_config().num_hidden_layers,
        "parameters": parameters,
        "text_tokens": 80,
        "identity": identity(model, inputs, twin, question),
        "unpruned": run(model, inputs, device, args.rounds),
        "budgets": [],
    }
    for keep in BUDGETS.get(name, [0.5, 0.2]):
        with prune(model, FSR(keep=keep), relevance=twin) as pruned:
            row = run(model, {**inputs, "question": question}, device, args.rounds)
            report = pruned.last
        assert report is not None
        row = {"keep": keep, "kept": report.tokens_after, "of": report.tokens_before, **row}
        row["times_faster"] = round(result["unpruned"]["prefill_ms"] / row["prefill_ms"], 2)
        row["notes"] = list(report.notes)
        result["budgets"].append(row)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*BUDGETS], metavar="NAME", help=f"of {', '.join(CONFIGS)}")
    parser.add_argument("--layers", type=int, help="build only this many language layers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager", "flash_attention_2"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    device = pick_device(args.device)
    out: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "dtype": "bfloat16",
        "attention": args.attention,
        "threads": torch.get_num_threads(),
        "versions": {"fsr": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "models": {},
    }
    for name in args.names:
        out["models"][name] = one(name, args, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps({name: out["models"][name]}, indent=2), flush=True)
        if args.out:
            args.out.write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")
    return int(not all(all(m["identity"].values()) for m in out["models"].values()))


if __name__ == "__main__":
    sys.exit(main())
