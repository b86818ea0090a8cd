"""Turn the JSON of `fsr profile` (or of benchmarks/prefill_ratio.py) into the Markdown of docs/performance.md.

python benchmarks/performance_table.py benchmarks/results/*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STAGES = ("vision_tower", "saliency", "text_tower", "selection", "prefill", "decode_per_token", "time_to_first_token")


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
    print("\n\n".join(table(json.loads(Path(name).read_text())) for name in sys.argv[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
