"""The dicts of `report` and `counted` as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsr.profiling.measure import LONGEST_ANSWER, STAGES

__all__ = ["text"]

MIB = 2**20


def text(result: dict[str, Any]) -> str:
    """All that a person wants to see of one result."""
    return {"paper": _paper, "counted": _counted, "measured": _measured}[result["kind"]](result)


def _paper(r: dict[str, Any]) -> str:
    head = ["method", "tokens", "FLOPs T", "printed", "MACs T", "printed", "KV MiB", "printed", ""]
    rows = []
    for row in r["rows"]:
        c, p = row["computed"], row["printed"]
        numbers = [f"{v[k]:.{d}f}" for k, d in (("flops_T", 3), ("macs_T", 3), ("kv_MB", 1)) for v in (c, p)]
        rows.append([row["method"], str(row["tokens"]), *numbers, "follows" if row["follows"] else "does not follow"])
    remarks = [f"{row['method']}: {row['remark']}." for row in r["rows"]]
    return "\n".join([f"{r['model']}, {r['text_tokens']} text tokens. {r['source']}.", _table(head, rows), *remarks])


def _counted(r: dict[str, Any]) -> str:
    parts = r["counts"]["parts"]
    head = ["method", "keep", "FLOPs T", "fewer", *[f"{p} G" for p in parts], "KV MiB"]
    rows = []
    for row in r["rows"]:
        per = r["counts"]["flops_per_mac"]
        share = [f"{per * row['macs_by_part'][p] / 1e9:.2f}" for p in parts]
        keep = "all" if row["keep"] is None else str(row["keep"])
        rows.append(
            [row["method"], keep, f"{row['flops'] / 1e12:.3f}", f"{row['times_fewer_flops']:.2f}x", *share]
            + [f"{row['kv_bytes'] / MIB:.1f}"]
        )
    return f"{r['model']}, {r['text_tokens']} text tokens. {r['preset']}: {r['source']}.\n{_table(head, rows)}"


def _measured(r: dict[str, Any]) -> str:
    head = ["method", "keep", "batch", "N", "K", *[s.replace("_", " ") for s in STAGES], "ms/token", "first token"]
    head += ["end to end", "p10-p90", "KV MiB", "peak MiB", "wrote"]
    rows, shares = [], []
    for row in r["results"]:
        ms, tokens = row["ms"], row["visual_tokens"]
        keep = "all" if row["keep"] is None else str(row["keep"])
        name = [row["method"], keep, str(row["batch"]), str(tokens["before"]), str(tokens["after"])]
        times = [f"{ms[s]['median']:.1f}" for s in (*STAGES, "decode_per_token", "time_to_first_token", "end_to_end")]
        spread = f"{ms['end_to_end']['p10']:.0f}-{ms['end_to_end']['p90']:.0f}"
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:.0f}"
        wrote = "-" if row["answer_tokens"] is None else str(row["answer_tokens"])
        rows.append([*name, *times, spread, f"{row['kv_bytes'] / MIB:.1f}", peak, wrote])
        shares.append([*name, *[f"{100 * row['share_of_end_to_end'][s]:.1f} %" for s in STAGES]])
    v = r["versions"]
    lines = [
        f"{r['model']} ({r['weights']} weights, {r['language_layers']} layers, {r['dtype']}, {r['attention']})",
        f"{r['device']}, {r['threads']} threads, torch {v['torch']}, transformers {v['transformers']}",
        f"Milliseconds per batch, medians of {max(row['rounds'] for row in r['results'])} interleaved rounds after "
        f"{r['warmup']} warm-up; {r['new_tokens']} new tokens. Wrote: tokens of an answer that may end by itself, "
        f"{LONGEST_ANSWER} at most.",
        _table(head, rows),
        "Share of the end-to-end time:",
        _table(head[: 5 + len(STAGES)], shares),
        *r["verdicts"],
    ]
    notes = [*r["notes"], *dict.fromkeys(n for row in r["results"] for n in row["notes"])]
    return "\n".join([*lines, *[f"note: {n}" for n in notes]])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = []
    for line in (head, *rows):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
