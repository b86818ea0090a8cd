"""Does time follow operations? Prefill of a LLaVA-1.5-7B-shaped language model at 576 and 64 visual tokens.

    python benchmarks/prefill_ratio.py [--batch 1] [--layers 32] [--dtype bfloat16] [--device cpu] [--rounds 3] [--json]

Prints the ratio of the times, the ratio of the FLOPs, and the first over the second, for the whole forward pass and for
the language layers in it. The bar, at least 90 %, is on the layers: on a CPU, torch copies the whole LM head once per
prefill (the last row of the hidden states is a slice, and the matrix product then expands the weight), a fixed cost of
the stock model that no token count changes.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from transformers.utils import logging

from fsr.asking.load import pick_device
from fsr.methods import FSR
from fsr.profiling.measure import Plan, measure
from fsr.profiling.measure_report import report
from fsr.profiling.workload import from_config

BAR = 0.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="llava-1.5-7b")
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1, help="prompts in one prefill")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=420, help="seconds after which no new round starts")
    parser.add_argument("--json", action="store_true", help="print the whole report as one JSON object")
    args = parser.parse_args()
    logging.set_verbosity_error()
    dtype = getattr(torch, args.dtype)
    subject = from_config(args.config, device=pick_device(args.device), dtype=dtype, layers=args.layers)
    plan = Plan((FSR(keep=args.keep),), (args.batch,), new_tokens=2, rounds=args.rounds, limit_s=args.limit)
    out = report(subject, plan, measure(subject, plan))
    base, pruned = out["results"]
    reached = pruned["layers_ratio_over_flop_ratio"]
    if args.json:
        print(json.dumps(out))
        return int(reached < BAR)
    for row in (base, pruned):
        spreads = [row["ms"][name] for name in ("prefill", "language_layers")]
        whole, layers = (f"{t['median']:.0f} ms ({t['p10']:.0f}-{t['p90']:.0f})" for t in spreads)
        print(
            f"{row['visual_tokens']['after']:5d} visual + {row['text_tokens']} text tokens: prefill {whole}, of that "
            f"language layers {layers}, {row['llm_flops_per_prompt'] / 1e12:.3f} TFLOPs"
        )
    for name, key in (
        ("prefill", "prefill_ratio_over_flop_ratio"),
        ("language_layers", "layers_ratio_over_flop_ratio"),
    ):
        print(
            f"{name}: {pruned['times_faster'][name]:.2f} times faster for {pruned['llm_flop_ratio']:.2f} times fewer "
            f"FLOPs, {100 * pruned[key]:.0f} % of it"
        )
    print(f"bar: {100 * BAR:.0f} % for the language layers")
    where = f"{out['dtype']}, {out['device']}, {out['threads']} threads"
    print(f"batch {args.batch}, {out['language_layers']} language layers, {where}")
    return int(reached < BAR)


if __name__ == "__main__":
    sys.exit(main())
