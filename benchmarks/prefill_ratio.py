"""Does time follow operations? Prefill of a LLaVA-1.5-7B-shaped language model at 576 and 64 visual tokens.

    python benchmarks/prefill_ratio.py [--batch 1] [--layers 32] [--dtype bfloat16] [--device cpu] [--rounds 3] [--json]

Prints the ratio of the prefill times, the ratio of the FLOPs, and the first over the second. The bar: at least 90 %.
Fewer layers leave both ratios nearly the same (the LM head runs on one row) and take less memory and time.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from transformers.utils import logging

from fsr.methods import FSR
from fsr.models import pick_device
from fsr.profiling.measure import Plan, measure
from fsr.profiling.report import report
from fsr.profiling.subject import from_config

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
    reached = pruned["prefill_ratio_over_flop_ratio"]
    if args.json:
        print(json.dumps(out))
    else:
        for row in (base, pruned):
            ms = row["ms"]["prefill"]
            print(
                f"{row['visual_tokens']['after']:5d} visual + {row['text_tokens']} text tokens: prefill "
                f"{ms['median']:.0f} ms ({ms['p10']:.0f}-{ms['p90']:.0f}), "
                f"{row['llm_flops_per_prompt'] / 1e12:.3f} TFLOPs"
            )
        print(
            f"time ratio {pruned['times_faster']['prefill']:.2f}, FLOP ratio {pruned['llm_flop_ratio']:.2f}: "
            f"{100 * reached:.0f} % of it reached (bar: {100 * BAR:.0f} %)"
        )
        print(f"batch {args.batch}, {out['language_layers']} language layers, {out['dtype']}, {out['device']}, {out['threads']} threads")
    return int(reached < BAR)


if __name__ == "__main__":
    sys.exit(main())
