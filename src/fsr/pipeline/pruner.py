"""The verb: `with prune(model, FSR(keep=64), processor=processor) as pruned: model.generate(**inputs)`.

What is installed lives on the model instance (a `generate` and three hooks), so threads and pipelines that call the
model see it, and `remove` takes it off without a trace. Data of one call never touches the model.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from fsr.adapters import find
from fsr.adapters.base import Adapter
from fsr.errors import UnsupportedModelError, UsageError
from fsr.methods.base import Method
from fsr.methods.chain import Chain
from fsr.methods.in_llm import InLLMMethod
from fsr.methods.parts import KeepAll, split
from fsr.pipeline.generate import (
    mark,
    refuse_chunks,
    refuse_foreign_cache,
    refuse_long_mask,
    refuse_uneven_beams,
    settings,
    shorter_limits,
    with_prompt,
)
from fsr.pipeline.in_llm import InLLMHooks
from fsr.pipeline.kv_cache import cache_of
from fsr.pipeline.prepare import Positions, Prepared, Report, Work
from fsr.pipeline.scorer import resolve_scorer
from fsr.pipeline.select import QuestionFor, check_question_for
from fsr.signals.relevance import RelevanceScorer, reads_features

__all__ = ["Pruner", "prune"]

# Where an applied pruner sits on its model.
PRUNER_ATTRIBUTE = "_fsr_pruner"


def prune(
    model: Any,
    method: Method | InLLMMethod | Chain,
    *,
    processor: Any = None,
    relevance: str | PathLike[str] | RelevanceScorer = "auto",
    positions: Positions = "auto",
    question_for: QuestionFor = "all",
) -> Pruner:
    """Make a model's own `generate` and `forward` see K visual tokens instead of N.

    Nothing changes until the `with` block is entered (or `apply` is called); leaving it (or `remove`) restores the
    model exactly. Inside, `generate` and `forward` take one more argument, `question` (a string, or one per row), for
    methods that read relevance. Returned sequences start with the user's own prompt; logits processors, streamers and
    attention outputs see the shortened one.

    Args:
        model: a vision-language model of Transformers, 5.18 or later. Wrappers (torch.compile, PEFT) are looked
            through.
        method: what to keep, for example `FSR(keep=64)`, `FastV(layer=2, keep=64)` (inside the language model), or
            both: `FSR(keep=128) | FastV(layer=16, keep=32)`.
        processor: needed only to read the question out of the prompt.
        relevance: as for `prepare`.
        positions: "repack", "original" or "auto" (by family).
        question_for: "all" pictures are chosen with the question, or only the "newest" of each prompt.

    Raises:
        UnsupportedModelError: no adapter for the model, or a Transformers release without `mm_encoder_outputs`.
        RelevanceError: the method reads relevance and no text tower pairs with this model.
        UsageError: no method, or layers that this language model does not have.
    """
    before_llm, in_llm = split(method)
    if in_llm and hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            "a compiled model skips the hooks that prune inside it: give the model itself, or prune before it."
        )
    model = _unwrapped(model)
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise UnsupportedModelError(
            f"{type(model).__name__}.forward takes no `mm_encoder_outputs`: install transformers>=5.18, "
            "or take a model that has it there."
        )
    adapter = find(model)
    before, scorer = resolve_scorer(adapter, before_llm or KeepAll(), relevance)
    check_question_for(question_for, before)
    ordered = any(m.ordered for m in in_llm)
    if ordered and before_llm is None:
        raise UsageError(
            "late follows the order of a method before the language model: write FSR(keep=...) | Late(...)."
        )
    work = Work(adapter, before, scorer, processor, positions, question_for, ordered)
    return Pruner(model, work, InLLMHooks(model, list(adapter.placeholder_ids().values()), in_llm) if in_llm else None)


class Pruner:
    """A method bound to a model; see `prune`. `last` is the report of the latest finished call, of whichever thread."""

    def __init__(self, model: Any, work: Work, in_llm: InLLMHooks | None = None) -> None:
        self.model, self.work, self.in_llm = model, work, in_llm
        self.last: Report | None = None
        self._handles: list[Any] = []
        self._earlier: Callable[..., Any] | None = None

    @property
    def method(self) -> Method | InLLMMethod | Chain:
        """The method as it runs (with relevance switched off where that was asked for)."""
        if self.in_llm is None:
            return self.work.method
        before_llm = None if isinstance(self.work.method, KeepAll) else self.work.method
        methods = self.in_llm.methods
        return methods[0] if before_llm is None and len(methods) == 1 else Chain(before_llm, methods)

    @property
    def adapter(self) -> Adapter:
        """What knows the model."""
        return self.work.adapter

    def __enter__(self) -> Pruner:
        return self.apply()

    def __exit__(self, *error: object) -> None:
        self.remove()

    def apply(self) -> Pruner:
        """Install on the model until `remove`.

        Raises:
            UsageError: the model is pruned already (two methods on one model: use `prepare`).
        """
        here = self.model.__dict__
        if PRUNER_ATTRIBUTE in here:
            raise UsageError(
                "this model is pruned already: leave that block first, or use prepare() for a second method."
            )
        self._earlier = here.get("generate")
        here[PRUNER_ATTRIBUTE] = self
        here["generate"] = types.MethodType(_generate, self.model)
        self._handles = [
            self.model.register_forward_pre_hook(_before_forward, with_kwargs=True),
            self.model.register_forward_hook(_after_forward, with_kwargs=True),
        ]
        if self.in_llm is not None:
            self.in_llm.attach()
        return self

    def remove(self) -> None:
        """Take everything off again.

        Raises:
            UsageError: not applied, or something else replaced `generate` in the meantime.
        """
        here = self.model.__dict__
        if here.get(PRUNER_ATTRIBUTE) is not self:
            raise UsageError("this pruner is not applied to its model.")
        ours = getattr(here.get("generate"), "__func__", None) is _generate
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.in_llm is not None:
            self.in_llm.detach()
        del here[PRUNER_ATTRIBUTE]
        if not ours:
            raise UsageError(
                "something replaced model.generate inside the block: undo that first, it still points at pruning."
            )
        if self._earlier is None:
            del here["generate"]
        else:
            here["generate"] = self._earlier
            self._earlier = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """A copied model gets a pruner of its own. Method, processor and text tower are shared (they hold no state of
        the model); scorers of features read the model's weights and are copied with it."""
        twin = Pruner.__new__(Pruner)
        memo[id(self)] = twin
        twin.model = copy.deepcopy(self.model, memo)
        w = self.work
        scorer = copy.deepcopy(w.scorer, memo) if reads_features(w.scorer) else w.scorer
        twin.work = Work(
            copy.deepcopy(w.adapter, memo), w.method, scorer, w.processor, w.positions, w.question_for, w.ordered
        )
        twin.in_llm = copy.deepcopy(self.in_llm, memo)
        twin.last = self.last
        twin._handles = copy.deepcopy(self._handles, memo)
        twin._earlier = copy.deepcopy(self._earlier, memo)
        return twin

    # ------------------------------------------------------------------------------------------------------------------

    def _unpruned(self) -> Callable[..., Any]:
        """The `generate` that the model had before."""
        return self._earlier or types.MethodType(type(self.model).generate, self.model)

    def _generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        generate = self._unpruned()
        kwargs = {**dict(zip(inspect.signature(generate).parameters, args)), **kwargs}
        question = kwargs.pop("question", None)
        if kwargs.get("inputs") is not None and kwargs.get("input_ids") is None:
            kwargs["input_ids"] = kwargs.pop("inputs")
        refuse_foreign_cache(self.adapter, kwargs)
        if not self.adapter.has_pixels(kwargs):
            return generate(**kwargs)
        setting = settings(self.model, kwargs)
        refuse_chunks(self.adapter, setting)
        if self.in_llm is not None:
            self.in_llm.refuse(setting)
        with torch.no_grad():
            prepared = self.work.run(kwargs, question, call="generate", use_cache=setting("use_cache") is not False)
        refuse_uneven_beams(setting, prepared)
        self._remember_positions(prepared)
        report = prepared.report
        arguments = shorter_limits(prepared.inputs, setting, report.length_before - report.length_after)
        if self.in_llm is None:
            output = generate(**arguments)
            self.last = report
        else:
            call = self.in_llm.begin(report, self._publish)
            try:
                output = generate(**arguments)
            finally:
                self.in_llm.end(call)
        return with_prompt(output, kwargs["input_ids"], report.length_after)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(inspect.signature(type(self.model).forward).parameters)[1:]
        kwargs = {**dict(zip(names, args)), **kwargs}
        question = kwargs.pop("question", None)
        if kwargs.get("mm_encoder_outputs") is not None or not self.adapter.has_pixels(kwargs):
            refuse_long_mask(kwargs)
            return (), kwargs
        refuse_foreign_cache(self.adapter, kwargs)
        prepared = self.work.run(kwargs, question, call="forward", use_cache=True)
        self._remember_positions(prepared)
        self._publish(prepared.report)
        if self.in_llm is not None:
            self.in_llm.begin(prepared.report, self._publish, single=True)
        return (), prepared.inputs

    def _publish(self, report: Report) -> None:
        self.last = report

    def _remember_positions(self, prepared: Prepared) -> None:
        """Multi-dimensional RoPE: later steps count from the largest position, which the model keeps as
        `rope_deltas`."""
        base, ids = self.adapter.base, prepared.report.input_ids
        places = prepared.get("position_ids")
        if not hasattr(base, "rope_deltas") or places is None or places.dim() != 3:
            return
        mask = prepared.get("attention_mask")
        seen = torch.ones_like(ids) if mask is None else mask
        top = places[1:].amax(0).masked_fill(seen.to(places.device) == 0, -1).amax(-1, keepdim=True)
        base.rope_deltas = top + 1 - seen.sum(-1, keepdim=True).to(top.device)


# Module-level functions, bound anew by a deep copy of the model: a closure would keep running the original's weights.


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model.__dict__[PRUNER_ATTRIBUTE]._generate(args, kwargs)


def _before_forward(model: nn.Module, args: Any, kwargs: Any) -> Any:
    return model.__dict__[PRUNER_ATTRIBUTE]._forward(args, kwargs)


def _after_forward(model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    """Mark the KV cache that a shortened prompt filled."""
    cache, ids = cache_of(output), kwargs.get("input_ids")
    if cache is not None and kwargs.get("mm_encoder_outputs") is not None and isinstance(ids, Tensor):
        mark(cache, model.__dict__[PRUNER_ATTRIBUTE].adapter, ids)


def _unwrapped(model: Any) -> Any:
    """Through `torch.compile` and PEFT to the model itself."""
    model = getattr(model, "_orig_mod", model)
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model
