"""Operation and cache counts as one JSON-ready dict: of a config under a convention, or the paper's Table 7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsr.errors import UnsupportedModelError
from fsr.methods.parts import label_of
from fsr.profiling.conventions import TABLE7, table7, twin_of
from fsr.profiling.counts import PARTS, Convention, Counts, count
from fsr.profiling.decoder import language
from fsr.profiling.mixers import Attention, GatedDelta
from fsr.profiling.selection import selection_macs
from fsr.profiling.visual import Visual

__all__ = ["count_report", "paper_table"]


def paper_table() -> dict[str, Any]:
    """Table 7 of the FSR paper, row by row."""
    return {
        "kind": "paper",
        "preset": TABLE7.name,
        "source": TABLE7.source,
        "model": "llava-1.5-7b",
        "text_tokens": 80,
        "rows": [row.as_dict() for row in table7()],
    }


def count_report(
    name: str, config: Any, picture: Visual, methods: Sequence[Any], convention: Convention, text: int = 80
) -> dict[str, Any]:
    """Unpruned and pruned counts of one prompt with one picture.

    Args:
        methods: with their budgets; those inside the language model are counted layer by layer.

    Raises:
        UnsupportedModelError: a method that this language model cannot run.
    """
    full = count(config, picture, text=text, convention=convention)
    rows = [_row("unpruned", None, full, full)]
    for method in methods:
        counts = _of(method, config, picture, convention, text)
        rows.append(_row(label_of(method), method.keep, counts, full))
    return {
        "kind": "counted",
        "preset": convention.name,
        "source": convention.source,
        "counts": {
            "parts": [p for p in PARTS if p in convention.parts],
            "attention_products": convention.attention,
            "lm_head_rows": convention.lm_head,
            "text_in_language_model": convention.text,
            "text_in_cache": convention.kv_text,
            "flops_per_mac": convention.flops_per_mac,
        },
        "model": name,
        "text_tokens": text,
        "rows": rows,
    }


def _of(method: Any, config: Any, picture: Visual, convention: Convention, text: int) -> Counts:
    schedule = getattr(method, "budgets", None)
    if schedule is not None:  # drops inside the language model
        depth, n = language(config).layers, picture.tokens
        _check_drops(method, config)
        edges = [0, *method.layers(depth), depth]
        levels = [n, *schedule(n, depth)]
        kept = [level for level, lo, hi in zip(levels, edges, edges[1:]) for _ in range(hi - lo)]
        return count(config, picture, kept=kept, text=text, convention=convention)
    twin = twin_of(config) if "relevance" in method.signals() else None
    macs = selection_macs(method, config, picture) if "selection" in convention.parts else 0
    return count(
        config,
        picture,
        kept=method.budget(picture.tokens),
        text=text,
        relevance=twin,
        selection_macs=macs,
        convention=convention,
    )


def _check_drops(method: Any, config: Any) -> None:
    """Raise `UnsupportedModelError` where `prune` would refuse this method: what cannot run has no count."""
    llm = language(config)
    behind = llm.stack[min(method.layers(llm.layers)) :]
    if any(isinstance(layer.mixer, GatedDelta) for layer in llm.stack):
        why = "has recurrent layers, whose state keeps what is dropped"
    elif any(layer.shared for layer in llm.stack):
        why = "has layers that read the keys of earlier ones"
    elif any(isinstance(layer.mixer, Attention) and layer.mixer.window for layer in behind):
        why = "attends in sliding windows behind the drop"
    else:
        return
    raise UnsupportedModelError(
        f"{method.name} drops inside the language model, and {config.model_type} {why}: leave {method.name} out, or "
        "count a method that prunes before the language model."
    )


def _row(name: str, keep: Any, counts: Counts, full: Counts) -> dict[str, Any]:
    return {
        "method": name,
        "keep": keep,
        **counts.as_dict(),
        "times_fewer_flops": round(full.flops / counts.flops, 4),
        "times_fewer_llm_flops": round(full.llm_macs / counts.llm_macs, 4),
    }
