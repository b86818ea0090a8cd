"""Step 4: what the signals cost of a call (saliency tap, relevance), and `torch.compile` of the language model beside
pruning."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import torch
from transformers.utils import logging

from fsr import FSR, prune
from fsr.profiling.workload import from_config
from fsr.signals.first_layer import FirstLayerRelevance
from part import Parts
from timing import about, clock
from tiny import tiny, tiny_text_tower

ROOT = Path(__file__).resolve().parents[2]
KEEP = 64
# The model of each part; all LLaVA-1.5-7B's shape, but first-layer relevance also on a family without a text tower.
LLAVA, QWEN = "llava-1.5-7b", "qwen2.5-vl-7b"


def saliency_tap(parts: Parts) -> dict[str, Any]:
    """`benchmarks/saliency_tap.py` on the device."""
    program = [sys.executable, "benchmarks/saliency_tap.py", "--json", "--device", parts.device.type]
    program += ["--rounds", "2", "--layers", "3"] if parts.pretend else ["--rounds", "30", "--dtype", "bfloat16"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=max(10, parts.left), cwd=ROOT)
    if not done.stdout.strip():
        raise RuntimeError(done.stderr[-500:])
    return json.loads(done.stdout)


def workload_of(name: str, parts: Parts) -> Any:
    small = {"config": tiny(name), "text_tower": tiny_text_tower()} if parts.pretend else {}
    return from_config(name, device=parts.device, dtype=torch.float32 if parts.pretend else torch.bfloat16, **small)


def words_of(text: str, add_special_tokens: bool = True) -> Any:
    """Stands in for a tokenizer: one id per word, small enough for every vocabulary."""
    return SimpleNamespace(input_ids=[10 + crc32(word.encode()) % 1000 for word in text.split()])


@torch.inference_mode()
def relevance_share(name: str, source: str, parts: Parts) -> dict[str, Any]:
    """Milliseconds of one kind of relevance inside a pruned call, and its share of that call's first token."""
    workload = workload_of(name, parts)
    model = workload.model
    scorer = FirstLayerRelevance(model, tokenizer=words_of) if source == "first layer" else workload.relevance or "none"
    shares, times = [], []
    with prune(model, FSR(keep=KEEP), relevance=scorer) as pruned:
        for run in range(3 if parts.pretend else 9):
            inputs, question = workload.inputs(1, run)  # a new question each time: text towers remember the last ones
            call = lambda: model.generate(**inputs, question=question, max_new_tokens=1)  # noqa: B023
            (ms,) = clock([call], parts.device, 1)
            times.append(pruned.last.timings["text_tower"])
            shares.append(times[-1] / ms)
    median = lambda values: sorted(values)[len(values) // 2]
    return {"model": name, "relevance_ms": median(times), "share_of_first_token": median(shares)}


@torch.inference_mode()
def compiled(parts: Parts) -> dict[str, Any]:
    """First token with the language model as it is and compiled, unpruned and pruned; the choices must not change."""
    workload = workload_of(LLAVA, parts)
    model = workload.model
    inputs, question = workload.inputs(1, 0)
    # `generate` is looked up anew in every call: pruning replaces it on the model.
    plain = lambda **more: model.generate(**inputs, **more, max_new_tokens=1, do_sample=False)
    pruned_call = partial(plain, question=question)
    out: dict[str, Any] = {}
    rows = []
    for name in ("eager", "compiled"):
        if name == "compiled":
            decoder = model.get_decoder()
            decoder.compile(backend="eager" if parts.pretend else "inductor", dynamic=True)
        out[f"unpruned, {name}_ms"] = clock([plain], parts.device, 2 if parts.pretend else 5)[0]
        with prune(model, FSR(keep=KEEP), relevance=workload.relevance or "none") as pruned:
            out[f"pruned, {name}_ms"] = clock([pruned_call], parts.device, 2 if parts.pretend else 5)[0]
            rows.append(pruned.last.selections[0].rows.cpu())
    out["same choice"] = bool(torch.equal(*rows))
    return out


def main() -> int:
    logging.set_verbosity_error()
    parts = Parts(__doc__ or "")
    parts.run("about", lambda: about(parts.device))
    parts.run("saliency tap", lambda: saliency_tap(parts))
    parts.run("relevance by the text tower", lambda: relevance_share(LLAVA, "text tower", parts))
    for name in (LLAVA, QWEN):
        parts.run(
            f"relevance by the first layer, {name}", lambda name=name: relevance_share(name, "first layer", parts)
        )
    parts.run("compiled language model", lambda: compiled(parts))
    return int(parts.failed)


if __name__ == "__main__":
    sys.exit(main())
