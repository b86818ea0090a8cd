"""A measurement as one JSON-ready dict: shares, speed-ups, ceilings, and a plain sentence about whether pruning
helps."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from fsr.profiling.counts import count
from fsr.profiling.measure import LONGEST_ANSWER, STAGES, Plan, Result
from fsr.profiling.workload import Workload
from fsr.version import __version__

__all__ = ["ceilings", "report", "verdict"]

# Below this gain in end-to-end time a reader should not bother; run-to-run noise is of the same size.
WORTH = 1.05


def report(workload: Workload, plan: Plan, results: Sequence[Result]) -> dict[str, Any]:
    """Everything that `fsr profile` prints about a measurement."""
    config = workload.model.config
    rows, verdicts, not_run = [], [], []
    base: Result | None = None
    for result in results:
        if result.method == "unpruned":
            base = result
            verdicts.append(_limits(result))
        if base is None or result.skipped:
            verdicts.append(f"{result.method} (keep {result.keep}, batch {result.batch}) was not run: {result.skipped}")
            not_run.append(
                {"method": result.method, "keep": result.keep, "batch": result.batch, "reason": result.skipped}
            )
            continue
        rows.append(_row(workload, base, result))
        if result is not base:
            verdicts += [verdict(base, result), *_longer(base, result)]
    return {
        "kind": "measured",
        "model": workload.name,
        "weights": workload.weights,
        "language_layers": config.get_text_config().num_hidden_layers,
        "device": _device(workload.model.device),
        "threads": torch.get_num_threads(),
        "dtype": str(workload.model.dtype).removeprefix("torch."),
        "attention": str(config._attn_implementation),
        "versions": _versions(),
        "new_tokens": plan.new_tokens,
        "warmup": plan.warmup,
        "notes": list(workload.notes),
        "results": rows,
        "not_run": not_run,
        "verdicts": verdicts,
    }


def ceilings(base: Result) -> tuple[float, float]:
    """Amdahl: how many times faster the first token, and the whole answer, would come if the prefill took no time at
    all."""
    t = {name: spread.median for name, spread in base.times.items()}
    first, whole = t["time_to_first_token"], t["end_to_end"]
    return first / max(first - t["prefill"], 1e-9), whole / max(whole - t["prefill"], 1e-9)


def verdict(base: Result, result: Result) -> str:
    """One sentence: what this method gains at this setting, or why it cannot help."""
    old = {name: spread.median for name, spread in base.times.items()}
    new = {name: spread.median for name, spread in result.times.items()}
    gain = old["end_to_end"] / new["end_to_end"]
    first = old["time_to_first_token"] / new["time_to_first_token"]
    who = f"{result.method} at {result.visual_after} of {result.visual_before} tokens, batch {result.batch}"
    cost = sum(new[stage] for stage in ("saliency", "text_tower", "selection"))
    saved = old["prefill"] - new["prefill"] + old["decode"] - new["decode"]
    if gain >= WORTH:
        clear = result.times["end_to_end"].p90 < base.times["end_to_end"].p10
        doubt = "" if clear else " The spreads (p10 to p90) overlap: run more rounds before believing it."
        return f"{who}: {first:.2f}x to the first token, {gain:.2f}x end to end; choosing costs {cost:.1f} ms.{doubt}"
    if saved <= 0:
        why = "the language model does not get faster at all"
    elif saved <= cost:
        why = f"the language model gets {saved:.1f} ms faster and choosing the tokens takes {cost:.1f} ms"
    elif old["prefill"] / old["end_to_end"] < 1 - 1 / WORTH:
        share = 100 * old["prefill"] / old["end_to_end"]
        why = f"the prefill is only {share:.1f} % of the time, so even without any prefill it would be {_x(base)}"
    else:
        why = f"it saves {saved:.1f} ms of {old['end_to_end']:.1f} ms and choosing costs {cost:.1f} ms"
    return f"{who}: pruning does not help here ({gain:.2f}x end to end): {why}."


def _longer(base: Result, result: Result) -> list[str]:
    """What it costs where pruning makes the answer longer: no sentence where it does not."""
    old, new = base.answer_tokens, result.answer_tokens
    if old is None or new is None or new <= old:
        return []
    step = result.times["decode_per_token"].median
    most = " (cut off there)" if new >= LONGEST_ANSWER else ""
    return [
        f"{result.method} at {result.visual_after} of {result.visual_before} tokens wrote {new} tokens{most} where the "
        f"unpruned model wrote {old}: at {step:.1f} ms per token, {(new - old) * step:.1f} ms more per answer."
    ]


def _limits(base: Result) -> str:
    first, whole = ceilings(base)
    t = {name: spread.median for name, spread in base.times.items()}
    tower = 100 * t["vision_tower"] / t["time_to_first_token"]
    return (
        f"batch {base.batch}, unpruned: the vision tower takes {tower:.1f} % of the time to the first token and the "
        f"prefill {100 * t['prefill'] / t['time_to_first_token']:.1f} %; pruning before the language model cannot make "
        f"the first token come more than {first:.2f}x faster, nor this answer more than {whole:.2f}x."
    )


def _x(base: Result) -> str:
    return f"{ceilings(base)[1]:.2f}x"


def _row(workload: Workload, base: Result, result: Result) -> dict[str, Any]:
    t = {name: spread.median for name, spread in result.times.items()}
    old = {name: spread.median for name, spread in base.times.items()}
    whole = t["end_to_end"]
    row: dict[str, Any] = {
        "method": result.method,
        "keep": result.keep,
        "batch": result.batch,
        "visual_tokens": {
            "before": result.visual_before,
            "after": result.visual_after,
            "layer_average": round(sum(result.layers) / len(result.layers), 2),
        },
        "text_tokens": result.text,
        "rounds": result.times["end_to_end"].count,
        "ms": {name: {k: round(v, 4) for k, v in asdict(spread).items()} for name, spread in result.times.items()},
        "share_of_end_to_end": {stage: round(t[stage] / whole, 4) for stage in STAGES},
        "kv_bytes": result.kv_bytes,
        "kv_visual_bytes": result.kv_visual_bytes,
        "peak_bytes": None if result.peak is None else result.peak.total,
        "answer_tokens": result.answer_tokens,
        "peak_above_start_bytes": None if result.peak is None else result.peak.above_start,
        "notes": list(result.notes),
    }
    flops = _llm_flops(workload, result)
    row["llm_flops_per_prompt"] = flops
    if result is base:
        first, answer = ceilings(base)
        row["ceiling"] = {"time_to_first_token": round(first, 4), "end_to_end": round(answer, 4)}
        return row
    names = ("prefill", "language_layers", "time_to_first_token", "end_to_end", "decode_per_token")
    row["times_faster"] = {name: round(old[name] / t[name], 4) for name in names}
    full = _llm_flops(workload, base)
    if flops and full:
        row["llm_flop_ratio"] = round(full / flops, 4)
        row["prefill_ratio_over_flop_ratio"] = round(old["prefill"] / t["prefill"] / (full / flops), 4)
        row["layers_ratio_over_flop_ratio"] = round(old["language_layers"] / t["language_layers"] / (full / flops), 4)
    return row


def _llm_flops(workload: Workload, result: Result) -> int | None:
    """FLOPs of the language model's prefill for one prompt, or None for a family that cannot be counted."""
    if workload.picture is None:
        return None
    return 2 * count(workload.model.config, workload.picture, kept=result.layers, text=result.text).llm_macs


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def _versions() -> dict[str, str]:
    import transformers

    return {
        "fsr": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
