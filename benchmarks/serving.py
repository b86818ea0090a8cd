"""The vLLM server on Qwen3-VL-2B's true shapes: what pruning brings to throughput and to the wait for the first token.

    .venv-engines/bin/python benchmarks/serving.py [--keep 0,64] [--side 512] [--clients 1,8,32]
        [--requests 16] [--minutes 9] [--json FILE]

One server answers all budgets, by the requests' own `fsr_keep` (0: unpruned), so rows of one run compare. Real HTTP
requests that stream; every client waits for its answer before it asks again. `new`: every request has a picture of its
own that the server has never seen, so no cache answers. `again`: all requests of a row are about the same few pictures,
which the server knows already, each time with another question, which stands behind the picture. Weights are random
(vLLM's `--load-format dummy`, bfloat16): time depends on shapes only.

Fewer layers would be faster and wrong: tower and language model get cheaper with each layer, choosing does not (it
reads one layer). When `--minutes` are over no request is sent any more; rows that are whole by then are in the table
and in FILE. A run appends to FILE: long tables are made of short runs.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import itertools
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "engines"), str(ROOT / "tests"), str(ROOT / "tests" / "shims")]

import torchvision_schemas  # noqa: E402, F401  (before anything that imports torchvision)
from patience import tail  # noqa: E402
from server import Server, chat  # noqa: E402

import tiny  # noqa: E402

# Pixels that make one token (patches of 16, merged 2 x 2); the longest side; tokens of an answer; pictures of "again".
UNIT, SIDE, LONGEST, FEW = 32, 1024, 4, 2
MODEL_LENGTH = 2048
VOCABULARY = 151936
MARKS = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
# Without those that begin a turn.
WORDS = [word for word in tiny.WORDS if not word.endswith(":")]


def checkpoint(folder: Path) -> str:
    """Save config and processor of a Qwen3-VL-2B whose tokenizer knows one word per token; no weights."""
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig

    words = ["<pad>", "<s>", "</s>", "<unk>", *MARKS, *tiny.WORDS]
    words += [f"w{number}" for number in range(len(words), VOCABULARY)]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(["vision_bos_token", "image_token", "video_token", "vision_eos_token"], MARKS))
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=names, model_max_length=4096,
    )  # fmt: skip
    ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(MARKS)))
    vision = Qwen3VLVisionConfig(
        depth=24, hidden_size=1024, num_heads=16, intermediate_size=4096, out_hidden_size=2048, patch_size=16,
        num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17],
    )  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5e6}
    text = Qwen3VLTextConfig(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, vocab_size=VOCABULARY, max_position_embeddings=4096, rope_parameters=rope,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    t.Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids[MARKS[1]], video_token_id=ids[MARKS[2]],
        vision_start_token_id=ids[MARKS[0]], vision_end_token_id=ids[MARKS[3]], tie_word_embeddings=True,
        architectures=["Qwen3VLForConditionalGeneration"], dtype="bfloat16",
    ).save_pretrained(folder)  # fmt: skip
    sizes = dict(patch_size=16, merge_size=2, temporal_patch_size=2)
    sizes |= dict(size={"shortest_edge": 64 * 64, "longest_edge": SIDE * SIDE})
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    t.Qwen3VLProcessor(
        image_processor=t.Qwen2VLImageProcessor(**sizes), video_processor=t.Qwen3VLVideoProcessor(**sizes),
        tokenizer=tokenizer, chat_template=tiny.CHAT_TEMPLATE.replace("<image>", picture),
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def stream(server: Server, body: dict[str, Any]) -> tuple[float, float, int]:
    """One request: seconds to the first token and to the last, tokens of the prompt."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    where = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=1200)
    began = time.perf_counter()
    where.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = where.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"the server answered {answer.status}: {answer.read().decode()}")
    first, prompt = 0.0, 0
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        # The server says nothing before it has the first token.
        first = first or time.perf_counter() - began
        told = json.loads(line[6:])
        if "error" in told:
            raise RuntimeError(f"the server ended a stream: {told['error']}")
        prompt = (told.get("usage") or {}).get("prompt_tokens", prompt)
    where.close()
    return first, time.perf_counter() - began, prompt


def load(
    server: Server, keep: int, clients: int, requests: int, again: bool, side: int, seed: int, end: float = np.inf
) -> dict[str, Any] | None:
    """`requests` requests by `clients` clients about pictures of side x side pixels; latencies in seconds.

    seed: another one shows other pictures. end: on `time.monotonic`'s clock; a row that is not whole by then is None.
    """
    tokens = (side // UNIT) ** 2
    rng = np.random.default_rng(seed)
    pictures = [drawn(rng, side) for _ in range(FEW if again else requests)]
    bodies = []
    for number in range(requests):
        question = " ".join(rng.choice(WORDS, 12))
        body = chat(question, pictures[number % len(pictures)], longest=LONGEST, fsr_keep=keep)
        bodies.append({**body, "ignore_eos": True})
    took: list[tuple[float, float, int]] = []
    if again and time.monotonic() < end:  # the server has seen them, under another question
        for picture in pictures:
            stream(server, {**chat("what is this ?", picture, longest=1, fsr_keep=keep), "ignore_eos": True})

    def client(mine: list[dict[str, Any]]) -> None:
        for body in mine:
            if time.monotonic() < end:
                took.append(stream(server, body))

    threads = [threading.Thread(target=client, args=(bodies[i::clients],)) for i in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - began
    if len(took) != requests:
        if time.monotonic() < end:
            raise RuntimeError(
                f"some clients failed, see above. The end of the server's log:\n{tail(server.log, 9000)}"
            )
        return None
    firsts = [first for first, _, _ in took]
    prompt = statistics.mean(length for _, _, length in took)
    return {
        "pictures": "again" if again else "new", "tokens": tokens, "keep": keep, "clients": clients,
        "requests": requests, "prompt_tokens": prompt, "visual_share": round((keep or tokens) / prompt, 3),
        "requests_per_s": round(requests / whole, 3), "ttft_p50_s": round(float(np.quantile(firsts, 0.5)), 2),
        "ttft_p95_s": round(float(np.quantile(firsts, 0.95)), 2),
        "seconds_p50": round(statistics.median(last for _, last, _ in took), 2),
    }  # fmt: skip


def drawn(rng: np.random.Generator, side: int) -> Image.Image:
    """A picture of random blocks, small as a PNG (as screenshots are)."""
    blocks = rng.integers(0, 255, (side // UNIT, side // UNIT, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST)


def choosing(server: Server) -> float:
    """Milliseconds from a picture's features to its kept tokens, the mean since the server began."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    spent, steps = (
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"fsr:selection_milliseconds_{what}"))
        for what in ("sum", "count")
    )
    return spent / max(1.0, steps)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; ratios against the unpruned row of the same run."""
    whole = {(r["run"], r["pictures"], r["clients"]): r for r in rows if not r["keep"]}
    rows = [r for r in rows if (r["run"], r["pictures"], r["clients"]) in whole]
    lines = [
        "| pictures | clients | requests | tokens | visual share of the prompt | requests/s | TTFT p50 s | "
        "TTFT p95 s | throughput | TTFT p50 shorter by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in sorted(rows, key=lambda r: (r["pictures"] == "again", r["clients"], r["run"], r["keep"] or 1 << 20)):
        w = whole[r["run"], r["pictures"], r["clients"]]
        lines.append(
            f"| {r['pictures']} | {r['clients']} | {r['requests']} | {r['keep'] or 'all'} of {r['tokens']} | "
            f"{r['visual_share']:.0%} | "
            f"{r['requests_per_s']:.3f} | {r['ttft_p50_s']:.2f} | {r['ttft_p95_s']:.2f} | "
            f"{r['requests_per_s'] / w['requests_per_s']:.2f}x | {w['ttft_p50_s'] / r['ttft_p50_s']:.2f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, append to the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", default="0,64", help="budgets, 0 for unpruned")
    parser.add_argument("--side", type=int, default=512, help=f"pixels of a picture, a multiple of {UNIT} up to {SIDE}")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--pictures", default="new,again")
    parser.add_argument("--requests", type=int, default=8, help="per row (at least one per client)")
    parser.add_argument("--minutes", type=float, default=60.0, help="after these, only what is under way is waited for")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true", help="print the table of the JSON file, measure nothing")
    args = parser.parse_args()
    if args.side % UNIT or not 0 < args.side <= SIDE:
        parser.error(f"--side {args.side}: a multiple of {UNIT} up to {SIDE}")
    end = time.monotonic() + 60 * args.minutes
    held: dict[str, Any] = {"model": "Qwen3-VL-2B, random weights, bfloat16", "tokens_out": LONGEST, "rows": []}
    if args.json and args.json.exists():
        held = json.loads(args.json.read_text(encoding="utf-8"))
    if args.table:
        print(table(held["rows"]))
        return

    from fsr import FSR
    from fsr.serving.vllm import overrides

    # A time limit from outside ends the server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    run, mine = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"), []
    budgets, counts = ([int(n) for n in text.split(",")] for text in (args.keep, args.clients))
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(Path(folder) / "model")
        given = overrides(FSR(keep=64), "Qwen3VLForConditionalGeneration")
        # What every budget of a request fits into.
        given["fsr"]["keep"] = 0
        # Blocks of 128 tokens are the CPU's default, and 16 a GPU's: only whole blocks are found in the prefix cache.
        options = f"--dtype bfloat16 --load-format dummy --max-model-len {MODEL_LENGTH} --max-num-seqs 32"
        options += " --block-size 32 --generation-config vllm --trust-request-mm-kwargs --limit-mm-per-prompt"
        limits = '{"image": 1, "video": 0}'
        # Room for 32 unpruned prompts of 512 x 512 pixels at once (8 of the largest); all cores compute.
        settings = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
        (metrics := Path(folder) / "metrics").mkdir()
        settings["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        log = Path(folder) / "log"
        with Server(model, log, *options.split(), limits, overrides=given, settings=settings) as server:
            seeds = itertools.count()
            # Warm up, with pictures that are not shown again.
            for keep in budgets:
                load(server, keep, 2, 2, False, args.side, next(seeds), end)
            for pictures, clients, keep in itertools.product(args.pictures.split(","), counts, budgets):
                requests = max(clients, args.requests)
                row = load(server, keep, clients, requests, pictures == "again", args.side, next(seeds), end)
                if row is None:
                    print(f"{args.minutes:g} minutes are over: {pictures}, {clients} clients, keep {keep} is not whole")
                    break
                mine.append({"run": run, **row})
                print(mine[-1], flush=True)
                if args.json:
                    told = {**held, "rows": held["rows"] + mine}
                    args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            print(f"\nchoosing took {choosing(server):.0f} ms per step, on average")
    print(f"\n{table(mine)}")


if __name__ == "__main__":
    main()
