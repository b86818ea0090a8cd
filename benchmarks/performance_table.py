"""The tables of docs/performance.md: operations and cache of true-size models, and the JSON of `fsr profile` (or of
benchmarks/prefill_ratio.py) as Markdown.

python benchmarks/performance_table.py --counts
python benchmarks/performance_table.py benchmarks/results/*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STAGES = ("vision_tower", "saliency", "text_tower", "selection", "prefill", "decode_per_token", "time_to_first_token")

# Models of the counted table, and their budgets: tokens, or shares of them.
COUNTED: dict[str, tuple[int | float, ...]] = {
    "llava-1.5-7b": (192, 128, 64),
    "llava-1.5-13b": (64,),
    "llava-next-7b": (960, 640, 320),
    "llava-onevision-7b": (0.2,),
    "qwen2.5-vl-7b": (0.5, 0.2, 0.1),
    "qwen3-vl-2b": (0.5, 0.2, 0.1),
    "qwen3-vl-8b": (0.2,),
    "qwen3-vl-30b-a3b": (0.5, 0.2, 0.1),
    "qwen3.5-9b": (0.5, 0.2, 0.1),
    "qwen3.6-27b": (0.2,),
    "qwen3.6-35b-a3b": (0.5, 0.2, 0.1),
    "gemma-4-e4b": (0.5, 0.2, 0.1),
    "gemma-4-26b-a4b": (0.5, 0.2, 0.1),
    "gemma-4-31b": (0.2,),
    "mistral-small-3": (0.5, 0.2, 0.1),
    "internvl3-8b": (64,),
}


def counted() -> str:
    """One prompt with one picture of 672 x 672 pixels and 80 text tokens, unpruned and pruned by FSR."""
    from fsr.methods import FSR
    from fsr.profiling.configs import named
    from fsr.profiling.conventions import FULL
    from fsr.profiling.count_report import count_report
    from fsr.profiling.visual import visual

    head = ["model", "N", "K", "FLOPs (T)", "fewer", "vision tower (T)", "language model (T)", "fewer"]
    lines = ["| " + " | ".join([*head, "KV cache (MiB)"]) + " |", "|---" * (len(head) + 1) + "|"]
    for name, keeps in COUNTED.items():
        config = named(name)
        picture = visual(config)
        for row in count_report(name, config, picture, [FSR(keep=k) for k in keeps], FULL)["rows"]:
            macs, whole = row["macs_by_part"], row["keep"] is None
            language = 2 * (macs["llm_linear"] + macs["llm_attention"] + macs["lm_head"])
            cells = [name, str(picture.tokens), "all"] if whole else ["", "", str(row["visual_tokens"])]
            cells += [f"{row['flops'] / 1e12:.2f}", f"{row['times_fewer_flops']:.2f}x"]
            cells += [f"{2 * macs['vision_tower'] / 1e12:.2f}", f"{language / 1e12:.2f}"]
            cells += [f"{row['times_fewer_llm_flops']:.2f}x", f"{row['kv_bytes'] / 2**20:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(result: dict) -> str:
    """One measurement: a caption, a table of medians, and what the profiler concluded."""
    v = result["versions"]
    caption = (
        f"{result['model']}, {result['weights']} weights, {result['language_layers']} language layers, "
        f"{result['dtype']}, {result['attention']}, {result['device']}, {result['threads']} threads, "
        f"torch {v['torch']}, transformers {v['transformers']}. "
        "Milliseconds per batch, medians (p10-p90 in brackets)."
    )
    head = ["method", "batch", "K of N", *[s.replace("_", " ") for s in STAGES], "end to end", "KV cache, MiB"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in result["results"]:
        ms, n = row["ms"], row["visual_tokens"]
        whole = ms["end_to_end"]
        cells = [row["method"], str(row["batch"]), f"{n['after']} of {n['before']}"]
        cells += [f"{ms[s]['median']:.1f}" for s in STAGES]
        cells += [f"{whole['median']:.1f} ({whole['p10']:.0f}-{whole['p90']:.0f})", f"{row['kv_bytes'] / 2**20:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    ratios = [
        f"{row['method']} {row['visual_tokens']['after']}: {row['llm_flop_ratio']:.2f}x fewer FLOPs; prefill "
        f"{row['times_faster']['prefill']:.2f}x faster ({100 * row['prefill_ratio_over_flop_ratio']:.0f} % of that), "
        f"its language layers {row['times_faster']['language_layers']:.2f}x "
        f"({100 * row['layers_ratio_over_flop_ratio']:.0f} %)."
        for row in result["results"]
        if "prefill_ratio_over_flop_ratio" in row
    ]
    return "\n".join([caption, "", *lines, "", *[f"- {s}" for s in (*ratios, *result["verdicts"], *result["notes"])]])


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    if sys.argv[1:] == ["--counts"]:
        print(counted())
        return 0
    print("\n\n".join(table(json.loads(Path(name).read_text())) for name in sys.argv[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
