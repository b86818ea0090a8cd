"""What was promised of a GPU, each as a check of the numbers that the steps wrote: met, missed, or not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """what: in words. limit: the number to reach; at_most: whether it is an upper bound. value: reads it from the
    results of all steps (KeyError or TypeError: not measured)."""

    what: str
    limit: float
    at_most: bool
    value: Callable[[Results], float]

    def check(self, results: Results, pretend: bool = False) -> tuple[str, str, str]:
        """The promise, what was measured, and the verdict (of a rehearsal: only whether the number could be read)."""
        sign = "at most" if self.at_most else "at least"
        promise = f"{self.what}: {sign} {self.limit:g}"
        try:
            found = float(self.value(results))
        except (KeyError, TypeError, IndexError, ValueError, StopIteration):
            return promise, "-", "not measured"
        if pretend:
            return promise, f"{found:.3g}", "readable"
        met = found <= self.limit if self.at_most else found >= self.limit
        return promise, f"{found:.3g}", "met" if met else "**missed**"


def _pick(case: str, method: str = "fsr", field: str = "graph_ms") -> Callable[[Results], float]:
    return lambda results: results["selection"][case][method][field]


ONE, FIVE = "one picture, 64 of 576", "five tiles, 128 of 576 each"
FIVE_960, MANY = "five tiles, 192 of 576 each", "32 pictures, 64 of 576 each"


def _row(results: Results, model: str, keep: int | float | None = None) -> dict[str, Any]:
    """FSR's row at a budget (default: the first) in the report of a model; None as budget never matches unpruned."""
    rows = [r for r in results["models"][model]["results"] if r["method"] == "fsr"]
    return next(r for r in rows if keep is None or r["keep"] == keep)


def _prefill(results: Results, model: str, key: str) -> float:
    return _row(results, model)[key]


BARS = (
    Bar("one selection from a graph, 64 of 576, ms", 0.25, True, _pick(ONE)),
    Bar(
        "CDPruner's plain loop over one selection, 64 of 576",
        10,
        False,
        lambda r: _pick(ONE, "cdpruner as a plain loop", "called_ms")(r) / _pick(ONE)(r),
    ),
    Bar("one selection from a graph, five tiles at 128, ms", 0.5, True, _pick(FIVE)),
    Bar("32 pictures over one picture, from graphs", 4, True, lambda r: _pick(MANY)(r) / _pick(ONE)(r)),
    Bar(
        "selection over the pruned prefill of LLaVA-NeXT-7B at 960 tokens, %",
        1,
        True,
        lambda r: 100 * _pick(FIVE_960)(r) / _row(r, "llava-next-7b", 960)["ms"]["prefill"]["median"],
    ),
    *(
        Bar(f"{model}: prefill ratio over FLOP ratio, {name}", 0.9, False, lambda r, m=model, k=key: _prefill(r, m, k))
        for model in ("llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b", "qwen3-vl-8b")
        for name, key in (
            ("whole prefill", "prefill_ratio_over_flop_ratio"),
            ("language layers", "layers_ratio_over_flop_ratio"),
        )
    ),
    Bar("saliency tap over the vision tower, %", 3, True, lambda r: 100 * r["shares"]["saliency tap"]["direct"]),
    *(
        Bar(
            f"{model}: first-layer relevance over the first token of a pruned call, %",
            2,
            True,
            lambda r, m=model: 100 * r["shares"][f"relevance by the first layer, {m}"]["share_of_first_token"],
        )
        for model in ("llava-1.5-7b", "qwen2.5-vl-7b")
    ),
)
