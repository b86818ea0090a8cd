"""Time and memory by stage of real `generate` calls, unpruned and pruned, interleaved so that drift hits all alike.

The language model is timed by hooks around each of its forward passes: the first is the prefill, the others decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fsr.adapters import find
from fsr.adapters.base import PIXELS
from fsr.device import synchronise
from fsr.errors import FSRError, RelevanceError, UsageError
from fsr.methods.parts import split
from fsr.pipeline.pruner import prune
from fsr.pipeline.relevance_source import resolve_scorer
from fsr.profiling.clock import clock_on
from fsr.profiling.memory import Peak, PeakMemory
from fsr.profiling.workload import Workload

__all__ = ["LONGEST_ANSWER", "STAGES", "Plan", "Result", "Spread", "measure"]

# Tokens after which an answer that does not end is cut off.
LONGEST_ANSWER = 64
# In the order in which they run. vision_tower: with the projector. saliency: signals read from its taps, and its output
# cut into pictures. rest: everything between the named stages, mostly what `generate` does around the model.
STAGES = ("preprocess", "vision_tower", "saliency", "text_tower", "selection", "prefill", "decode", "rest")


@dataclass(frozen=True)
class Plan:
    """What to run. limit_s: no new round starts once the rounds of all batch sizes would take longer (at least one
    runs)."""

    methods: tuple[Any, ...]
    batches: tuple[int, ...] = (1,)
    new_tokens: int = 8
    warmup: int = 1
    rounds: int = 3
    limit_s: float = 420.0

    def __post_init__(self) -> None:
        if min((*self.batches, self.rounds, self.warmup)) < 1 or self.new_tokens < 2:
            raise UsageError("give batch sizes, rounds and warm-up rounds of at least 1, and at least 2 new tokens.")


@dataclass(frozen=True)
class Spread:
    """Milliseconds: median, 10th and 90th percentile of `count` values."""

    median: float
    p10: float
    p90: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Percentiles with linear interpolation."""
        p10, p50, p90 = np.percentile(np.asarray(values, dtype=float), [10, 50, 90])
        return cls(float(p50), float(p10), float(p90), len(values))


@dataclass(frozen=True)
class Result:
    """One method, budget and batch size.

    method: its name, "unpruned" for the model as it is. keep: the budget (None: all). times: milliseconds of the whole
    batch for every stage of `STAGES`, and "time_to_first_token", "end_to_end", "decode_per_token", "language_layers"
    (the part of the prefill without embedding, merging and LM head).
    visual_before: visual tokens of one prompt; layers: those left in each language layer; text: the others.
    kv_bytes: the real cache right after the prefill, states of recurrent layers included; kv_visual_bytes: the share of
    its keys and values that visual tokens take.
    answer_tokens: what the model writes when it may end by itself, its end token included and LONGEST_ANSWER at most;
    None with random weights, which end nowhere. Every result of a batch size answers the same question.
    skipped: why it could not run, else "".
    """

    method: str
    keep: int | float | None
    batch: int
    times: Mapping[str, Spread]
    visual_before: int = 0
    layers: tuple[int, ...] = ()
    text: int = 0
    kv_bytes: int = 0
    kv_visual_bytes: int = 0
    peak: Peak | None = None
    answer_tokens: int | None = None
    notes: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def visual_after(self) -> int:
        """Visual tokens that are left in the last language layer."""
        return self.layers[-1]


@dataclass
class _Variant:
    """A method that will run, and what its runs gave."""

    method: Any
    name: str
    keep: int | float | None
    batch: int
    relevance: Any
    notes: tuple[str, ...]
    runs: list[dict[str, float]]
    steps: list[float]
    facts: dict[str, Any]
    peak: Peak | None = None
    answer_tokens: int | None = None

    def result(self) -> Result:
        times = {stage: Spread.of([run[stage] for run in self.runs]) for stage in self.runs[0]}
        times["decode_per_token"] = Spread.of(self.steps)
        return Result(
            self.name,
            self.keep,
            self.batch,
            times,
            **self.facts,
            peak=self.peak,
            answer_tokens=self.answer_tokens,
            notes=self.notes,
        )


def measure(workload: Workload, plan: Plan) -> list[Result]:
    """Run everything; the first result of each batch size is the unpruned model."""
    results = []
    fresh = count()  # a new question for every run: text towers remember the last ones
    for batch in plan.batches:
        variants, skipped = _variants(workload, plan, batch)
        began = perf_counter()
        limit = plan.limit_s / len(plan.batches)
        for _ in range(plan.warmup):
            for variant in list(variants):
                try:
                    _run(workload, variant, plan, next(fresh))
                except FSRError as error:  # some limits of a model show only when it runs
                    variants.remove(variant)
                    skipped.append(_skipped(variant.name, variant.keep, batch, error))
        for i in range(plan.rounds):
            for variant in variants:
                with PeakMemory(workload.model.device) as memory:
                    times, steps, variant.facts = _run(workload, variant, plan, next(fresh))
                variant.runs.append(times)
                variant.steps += steps
                variant.peak = variant.peak or memory.peak
            spent = perf_counter() - began
            if spent + spent / (plan.warmup + i + 1) > limit:
                break
        if workload.weights == "checkpoint":
            asked = next(fresh)
            for variant in variants:
                variant.answer_tokens = _answer_length(workload, variant, asked)
        results += [v.result() for v in variants] + skipped
    return results


def _variants(workload: Workload, plan: Plan, batch: int) -> tuple[list[_Variant], list[Result]]:
    variants = [_Variant(None, "unpruned", None, batch, "none", (), [], [], {})]
    skipped = []
    for method in plan.methods:
        keep = getattr(method, "keep", None)
        try:
            relevance, notes = _relevance(workload, method)
            prune(workload.model, method, relevance=relevance)  # refuses what this model cannot do
            variants.append(_Variant(method, method.name, keep, batch, relevance, notes, [], [], {}))
        except FSRError as error:
            skipped.append(_skipped(method.name, keep, batch, error))
    return variants, skipped


def _skipped(name: str, keep: int | float | None, batch: int, error: FSRError) -> Result:
    return Result(name, keep, batch, {}, skipped=" ".join(str(error).split()))


def _relevance(workload: Workload, method: Any) -> tuple[Any, tuple[str, ...]]:
    """What `prune` gets as relevance: the workload's, or "none" (and a note) where a method can do without."""
    before_llm, _ = split(method)
    if before_llm is None:
        return "none", ()
    adapter, relevance = find(workload.model), workload.relevance
    try:
        resolved, _ = resolve_scorer(adapter, before_llm, relevance)
    except RelevanceError:
        relevance = "none"
        resolved, _ = resolve_scorer(adapter, before_llm, relevance)
    lost = "relevance" in before_llm.signals() - resolved.signals()
    return relevance, ("ran without relevance: no text tower pairs with this model",) if lost else ()


@torch.inference_mode()
def _run(workload: Workload, variant: _Variant, plan: Plan, number: int) -> tuple[dict[str, float], list[float], Any]:
    """Milliseconds by stage, milliseconds of each decoding step, and the facts of `Result`."""
    model = workload.model
    made = perf_counter()
    inputs, question = workload.inputs(variant.batch, number)
    synchronise(model.device)
    ready = perf_counter()
    began = made if workload.preprocessed else ready
    stages = dict.fromkeys(STAGES, 0.0) | {"preprocess": 1e3 * (ready - began)}
    limits = {"max_new_tokens": plan.new_tokens, "min_new_tokens": plan.new_tokens, "do_sample": False}
    before, text = _tokens(model, inputs)
    if variant.method is None:
        arguments = _unpruned(model, inputs, stages)
        with clock_on(model) as clock:
            model.generate(**arguments, **limits)
    else:
        with prune(model, variant.method, relevance=variant.relevance) as pruned, clock_on(model) as clock:
            model.generate(**inputs, **limits, question=question)
        timings = pruned.last.timings if pruned.last is not None else {}
        stages |= {name: ms for name, ms in timings.items() if name in STAGES and name != "rest"}
    ended = perf_counter()
    steps = [1e3 * (b - a) for (_, a), (_, b) in zip(clock.passes, clock.passes[1:])]
    first_start, first_end = clock.passes[0]
    stages["prefill"] = 1e3 * (first_end - first_start)
    stages["language_layers"] = clock.layers_ms
    stages["decode"] = sum(steps)
    stages["rest"] = 1e3 * (ended - began) - sum(stages[name] for name in STAGES if name != "rest")
    stages["time_to_first_token"] = 1e3 * (first_end - began)
    stages["end_to_end"] = 1e3 * (ended - began)
    layers = tuple(n - text for n in clock.lengths)
    facts = {
        "visual_before": before,
        "layers": layers,
        "text": text,
        "kv_bytes": clock.kv_bytes,
        "kv_visual_bytes": sum(size * (n - text) // n for size, n in zip(clock.growing, clock.lengths)),
    }
    return stages, steps, facts


@torch.inference_mode()
def _answer_length(workload: Workload, variant: _Variant, number: int) -> int:
    """Tokens that the model writes to question `number` before it ends, see `Result.answer_tokens`."""
    model = workload.model
    inputs, question = workload.inputs(1, number)
    limits = {"max_new_tokens": LONGEST_ANSWER, "do_sample": False}
    if variant.method is None:
        out = model.generate(**inputs, **limits)
    else:
        with prune(model, variant.method, relevance=variant.relevance):
            out = model.generate(**inputs, **limits, question=question)
    return out.shape[1] - inputs["input_ids"].shape[1]  # one row: it stops at its own end token


def _tokens(model: Any, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Visual and text tokens of one prompt."""
    row = inputs["input_ids"][0].tolist()
    placeholders = set(find(model).placeholder_ids().values())
    visual = sum(token in placeholders for token in row)
    return visual, len(row) - visual


def _unpruned(model: Any, inputs: Mapping[str, Any], stages: dict[str, float]) -> dict[str, Any]:
    """The model's own features handed over whole, so that tower and prefill are timed apart as in the pruned runs."""
    encoded = find(model).encode(inputs, frozenset())
    stages["vision_tower"] = sum(e.timings["vision_tower"] for e in encoded)
    arguments = {name: value for name, value in inputs.items() if name not in PIXELS}
    arguments["mm_encoder_outputs"] = {e.modality: e.output for e in encoded}
    return arguments
