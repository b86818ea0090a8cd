"""The vLLM server with FSR against the same server without: latency and throughput at 1, 8 and 32 clients.

    .venv-engines/bin/python benchmarks/serving_llava.py [--keep 192,64] [--clients 1,8,32] [--json FILE]

Fewer tokens have been seen to halve throughput where pruning went in the way of batching, so both are measured, with
real HTTP requests, every client waiting for its answer before it asks again. The model is of LLaVA-1.5's shape (576
visual tokens) and small enough for a CPU: CLIP ViT-B at 384 pixels, a 0.3 B Llama, CLIP's text tower for relevance,
all with random weights. Every request has another picture and another question, so no cache answers. Servers run one
after another: compare ratios, and mind what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "engines"), str(ROOT / "tests")]

from server import Server, chat  # noqa: E402

import tiny  # noqa: E402

SIDE, PATCH, LONGEST = 384, 16, 16
# Without those that begin a turn.
WORDS = [word for word in tiny.WORDS if not word.endswith(":")]


def checkpoint(folder: Path) -> str:
    """Save the model, its processor and its text tower."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaProcessor,
    )

    from fsr.profiling.random_weights import random_model, random_twin
    from fsr.signals.clip_twin import save_twin

    words = len(tiny.SPECIAL) + len(tiny.WORDS)
    vision = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=SIDE,
        patch_size=PATCH, projection_dim=512,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=words, hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=16, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tiny.SPECIAL.index("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=(SIDE // PATCH) ** 2,
    )  # fmt: skip
    model = random_model(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=tiny.word_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=tiny.CHAT_TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=49408, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
        projection_dim=512,
    )  # fmt: skip
    twin = random_twin(model.model.vision_tower, config=clip)
    twin.tokenizer = tiny.word_tokenizer(ends=True)
    save_twin(folder, twin)
    return str(folder)


def load(server: Server, clients: int, each: int) -> dict[str, Any]:
    """Every client asks `each` times, one request after another; seconds per request and requests per second."""
    seconds: list[float] = []
    usage: list[int] = []
    rng = np.random.default_rng(clients)
    bodies = []
    for number in range(clients * each):
        picture = Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
        question = " ".join(rng.choice(WORDS, 12)) + f" {number}"
        bodies.append({**chat(question, picture, longest=LONGEST), "ignore_eos": True})

    def client(mine: list[dict[str, Any]]) -> None:
        for body in mine:
            began = time.perf_counter()
            status, said = server.post(body)
            if status != 200:
                raise RuntimeError(f"the server answered {status}: {said}")
            seconds.append(time.perf_counter() - began)
            usage.append(said["usage"]["prompt_tokens"])

    threads = [threading.Thread(target=client, args=(bodies[i::clients],)) for i in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - began
    if len(seconds) != clients * each:
        raise RuntimeError("some clients failed, see above")
    return {
        "requests": len(seconds),
        "prompt_tokens": statistics.mean(usage),
        "median_s": round(statistics.median(seconds), 3),
        "p90_s": round(float(np.quantile(seconds, 0.9)), 3),
        "requests_per_s": round(len(seconds) / whole, 3),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", default="192,64", help="budgets, separated by commas")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--requests", type=int, default=64, help="per number of clients (at least one per client)")
    parser.add_argument("--json")
    args = parser.parse_args()

    from fsr import FSR
    from fsr.serving.vllm import overrides

    out: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "tokens_out": LONGEST, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(Path(folder) / "model")
        options = [
            "--dtype",
            "bfloat16",
            "--max-model-len",
            "1024",
            "--max-num-seqs",
            "32",
            "--generation-config",
            "vllm",
        ]
        for keep in [None, *map(int, args.keep.split(","))]:
            # Stock vLLM cannot load towers as Transformers 5 saves them; keep=0 is the same server, unpruned.
            given = overrides(FSR(keep=keep or 64), "LlavaForConditionalGeneration")
            given["fsr"]["keep"] = keep or 0
            with Server(model, Path(folder) / "log", *options, overrides=given) as server:
                load(server, 1, 2)
                for clients in map(int, args.clients.split(",")):
                    row = {"keep": keep, "clients": clients, **load(server, clients, max(1, args.requests // clients))}
                    out["rows"].append(row)
                    print(row, flush=True)
    print("\n| tokens | clients | prompt | median s | p90 s | requests/s | times the throughput | median shorter by |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    base = {r["clients"]: r for r in out["rows"] if r["keep"] is None}
    for r in out["rows"]:
        b = base[r["clients"]]
        print(
            f"| {r['keep'] or 'all 576'} | {r['clients']} | {r['prompt_tokens']:.0f} | {r['median_s']:.2f} | "
            f"{r['p90_s']:.2f} | {r['requests_per_s']:.2f} | {r['requests_per_s'] / b['requests_per_s']:.2f} | "
            f"{b['median_s'] / r['median_s']:.2f}x |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
