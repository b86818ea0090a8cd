"""What a pruned model does in place of its own `generate` and `forward`, and which calls it refuses.

Nothing here is installed anywhere: `pruner` does that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fsr.adapters.base import Adapter
from fsr.errors import UnsupportedModelError, UsageError
from fsr.pipeline.generate import (
    refuse_chunks,
    refuse_foreign_cache,
    refuse_full_prompt,
    refuse_own_assistant,
    refuse_uneven_beams,
    refuse_wrong_mask,
    settings,
    shorter_limits,
    with_prompt,
)
from fsr.pipeline.in_llm import InLLMHooks
from fsr.pipeline.inputs import ids_and_mask, refuse_unpruned
from fsr.pipeline.kv_cache import (
    MARK,
    cache_in,
    cache_of,
    is_empty,
    mark,
    positions_go_on,
    remember_positions,
    rope_deltas,
)
from fsr.pipeline.open_call import OpenCall, named, running
from fsr.pipeline.prepare import Work
from fsr.pipeline.report import Prepared, Report

__all__ = ["PrunedCalls"]


class PrunedCalls:
    """The calls of one model with one method. `last` is the report of the latest finished one."""

    def __init__(self, model: Any, work: Work, in_llm: InLLMHooks | None) -> None:
        self.model, self.work, self.in_llm = model, work, in_llm
        self.last: Report | None = None

    @property
    def adapter(self) -> Adapter:
        """What knows the model."""
        return self.work.adapter

    def _generate(self, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`generate` is the one that the model had before."""
        kwargs, places = named(generate, type(self.model).generate, args, kwargs)
        question = kwargs.pop("question", None)
        if kwargs.get("inputs") is not None and kwargs.get("input_ids") is None:
            kwargs["input_ids"] = kwargs.pop("inputs")
        setting = settings(self.model, kwargs)
        refuse_own_assistant(self.model, setting)
        refuse_foreign_cache(self.adapter, kwargs)
        if not self.adapter.has_pixels(kwargs):
            refuse_unpruned(self.adapter, kwargs, call="generate")
            positions_go_on(self.adapter, kwargs, "generate")
            output = _called(generate, kwargs, places, OpenCall(self))
            self._nothing_pruned(kwargs)
            return output
        refuse_chunks(self.adapter, setting)
        refuse_full_prompt(kwargs, setting)
        self.adapter.check_settings(setting)
        if self.in_llm is not None:
            self.in_llm.refuse(setting)
            self.in_llm.check_prompt(*ids_and_mask(self.adapter, kwargs, "generate"), kwargs)
        with torch.no_grad():
            prepared = self.work.run(kwargs, question, call="generate", use_cache=setting("use_cache") is not False)
        refuse_uneven_beams(setting, prepared)
        report, call = prepared.report, self._open(prepared)
        arguments = shorter_limits(prepared.inputs, setting, report.length_before - report.length_after)
        if self.in_llm is None:
            output = _called(generate, arguments, places, call)
        else:
            with self.in_llm.running(report, call.take):
                output = _called(generate, arguments, places, call)
        self.last = call.report
        return with_prompt(output, kwargs["input_ids"], report.length_after)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            own = type(self.model).forward
            kwargs, _ = named(self.model.__dict__.get("forward", self.model.forward), own, args, kwargs)
        question = kwargs.pop("question", None)
        if not self.adapter.has_pixels(kwargs):
            if not torch.compiler.is_compiling():
                self._forget_interrupted()
                if running(self) is None:
                    refuse_unpruned(self.adapter, kwargs)
                    self._nothing_pruned(kwargs)
            elif cache_in(kwargs) is None and not kwargs.get("mm_encoder_outputs"):
                self.last = None  # compiled code makes no report; the one before is not this call's
            refuse_wrong_mask(kwargs)
            positions_go_on(self.adapter, kwargs)
            return (), kwargs
        self._forget_interrupted()
        refuse_foreign_cache(self.adapter, kwargs)
        if self.in_llm is not None:
            self.in_llm.check_prompt(*ids_and_mask(self.adapter, kwargs, "forward"), kwargs)
        prepared = self.work.run(kwargs, question, call="forward", use_cache=True)
        call = self._open(prepared, single=True)
        if self.in_llm is not None:
            self.in_llm.begin(prepared.report, call.take, single=True)
        call.begin()
        return (), prepared.inputs

    def _nothing_pruned(self, kwargs: dict[str, Any]) -> None:
        """`last` of a prompt without pictures says so; steps behind a prompt leave the report of that prompt."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if kwargs.get("mm_encoder_outputs") or not is_empty(cache_in(kwargs)):
            return  # what `prepare` made has its own report
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            self.last = None
            return
        mask = mask if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids)
        self.last = Report.of_text(ids, mask, kwargs.get("labels"))

    def _open(self, prepared: Prepared, single: bool = False) -> OpenCall:
        deltas = remember_positions(self.adapter, prepared, "forward" if single else "generate")
        return OpenCall(self, prepared.report, single, finished=self.in_llm is None, deltas=deltas)

    @torch.compiler.disable
    def _forget_interrupted(self) -> None:
        """A forward that Ctrl-C ended told nobody."""
        call = running(self)
        if call is not None and call.single:
            call.end()

    def _before_base(self, base: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The inner model runs inside our own calls, or on text, perhaps behind a cache that we filled."""
        if torch.compiler.is_compiling():
            return None
        kwargs, _ = named(base.forward, type(base).forward, args, kwargs)
        if self.adapter.has_pixels(kwargs):
            raise UsageError(
                f"{type(base).__name__} was called with pixels inside the block, past the pruned model: call the model "
                "itself, or prune(...) the inner model in its place."
            )
        call = running(self)
        if call is None:
            refuse_unpruned(self.adapter, kwargs, "the inner model is not pruned by itself (prune(...) it in place)")
        elif kwargs.get("mm_encoder_outputs"):
            call.reached = True
        if call is not None or not hasattr(cache_in(kwargs), MARK):
            return None
        positions_go_on(self.adapter, kwargs)
        return (), kwargs

    @torch.compiler.disable
    def _after(self, kwargs: Any, output: Any) -> None:
        """Behind a forward that was given kept features: mark the KV cache that they filled, and close the call."""
        call = running(self)
        if call is not None and call.single:
            call.end()
        if output is None:
            return
        if call is not None and not call.reached and self.adapter.base is not self.model and _replaced(self.model):
            raise UnsupportedModelError(
                f"the forward that replaced that of {type(self.model).__name__} does not hand mm_encoder_outputs on, "
                "so the model never saw the pictures: let it pass its **kwargs to the model's own forward."
            )
        cache, ids = cache_of(output), kwargs.get("input_ids")
        if cache is not None and isinstance(ids, Tensor):
            deltas = rope_deltas(self.adapter, kwargs, "forward") if call is None else call.deltas
            mark(cache, self.adapter, ids, deltas, kwargs.get("attention_mask"))
        if call is not None and call.single and call.finished:
            self.last = call.report


def _called(generate: Callable[..., Any], kwargs: dict[str, Any], places: list[str], call: OpenCall) -> Any:
    """Call it with those arguments by place that the user gave by place."""
    kwargs = dict(kwargs)
    if "inputs" in places and "inputs" not in kwargs:
        kwargs["inputs"] = kwargs.pop("input_ids", None)
    by_place = [kwargs.pop(name, None) for name in places]
    call.begin()
    try:
        return generate(*by_place, **kwargs)
    finally:
        call.end()


def _replaced(model: Any) -> bool:
    """Whether something else than the class's own forward runs (compiled ones are the same code)."""
    own = model.__dict__.get("forward")
    if own is not None and not hasattr(own, "_torchdynamo_orig_callable"):
        return True
    return "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters
