"""Do vLLM and Transformers give the same answers about pruned pictures? Questions about the embedded models' scenes.

    .venv-engines/bin/python benchmarks/engine_answers.py [--model mini-qwen3] [--keep 0.25] [--questions 500]

Both in float32 on a CPU, greedy, the same checkpoint, method and budget, the first questions of the test set. One
engine, all requests at once; Transformers one after another. Prints how many answers are the same, and how many right.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1"
)

from fsr.asking.answer import answer
from fsr.asking.load import load
from fsr.evaluation.question_set import build
from fsr.methods import get
from fsr.serving.vllm import overrides

LONGEST = 8


def main() -> None:
    """Measure, print, and write to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mini", "mini-qwen3"), default="mini-qwen3")
    parser.add_argument("--method", default="fsr")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--relevance", default="auto")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    method = get(given.method, keep=given.keep)
    asked = build("test", world="native" if given.model == "mini-qwen3" else "mini")
    items = asked.items[: given.questions]
    pictures = [asked.picture(item.scene) for item in items]

    began = time.perf_counter()
    model, processor = load(given.model, device="cpu")
    model = model.float()
    reference = [
        answer(model, processor, p, i.question.text, method, relevance=given.relevance, max_new_tokens=LONGEST).text
        for p, i in zip(pictures, items)
    ]
    transformers_seconds = time.perf_counter() - began
    engine = through_vllm(given, model.config.architectures[0], method, processor, items, pictures)

    same = sum(a.strip() == b.strip() for a, b in zip(engine, reference))
    right = [sum(a.strip() == i.question.answer for a, i in zip(x, items)) for x in (engine, reference)]
    told = {
        "model": given.model, "method": given.method, "keep": given.keep, "relevance": given.relevance,
        "questions": len(items), "same": same, "right in vllm": right[0], "right in transformers": right[1],
        "transformers seconds": round(transformers_seconds, 1),
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    for a, b, i in zip(engine, reference, items):
        if a.strip() != b.strip():
            print(f"differs: {i.question.text!r}: vllm {a!r}, transformers {b!r}")
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def through_vllm(
    given: argparse.Namespace, architecture: str, method: Any, processor: Any, items: Any, pictures: Any
) -> list[str]:
    """The engine's answers."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(files("fsr.minivlm") / "data" / given.model), dtype="float32", max_model_len=512, enforce_eager=True,
        max_num_seqs=16, block_size=32, seed=0, limit_mm_per_prompt={"image": 1},
        hf_overrides=overrides(method, architecture, given.relevance),
    )  # fmt: skip
    requests = [
        {"prompt_token_ids": prompt(processor, i.question.text), "multi_modal_data": {"image": p}}
        for i, p in zip(items, pictures)
    ]
    out = llm.generate(requests, SamplingParams(temperature=0, max_tokens=LONGEST), use_tqdm=False)
    return [o.outputs[0].text for o in out]


def prompt(processor: Any, question: str) -> list[int]:
    """The chat turn as Transformers tokenizes it, with one placeholder."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(processor.tokenizer(text, add_special_tokens=False).input_ids)


if __name__ == "__main__":
    main()
