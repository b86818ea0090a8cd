"""The verb: `with prune(model, FSR(keep=64), processor=processor) as pruned: model.generate(**inputs)`.

What is installed lives on the model instance (a `generate` and a few hooks), so threads and pipelines that call the
model see it, and `remove` takes it off without a trace. Data of one call never touches the model.
"""

from __future__ import annotations

import copy
import inspect
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any
from weakref import ReferenceType, ref

from torch import nn

from fsr.adapters import find
from fsr.adapters.wrappers import unwrapped
from fsr.errors import UnsupportedModelError, UsageError
from fsr.methods.base import Method
from fsr.methods.chain import Chain
from fsr.methods.in_llm import InLLMMethod
from fsr.methods.parts import KeepAll, split, without_downscale
from fsr.pipeline.calls import PrunedCalls
from fsr.pipeline.in_llm import InLLMHooks
from fsr.pipeline.prepare import Positions, Work
from fsr.pipeline.relevance_source import resolve_scorer
from fsr.pipeline.resolution import Resolution
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
        model: a vision-language model of Transformers, 5.18 or later. Wrappers (torch.compile, PEFT, DataParallel and
            DistributedDataParallel) are looked through.
        method: what to keep, for example `FSR(keep=64)`, `FastV(layer=2, keep=64)` (inside the language model), or
            both: `FSR(keep=128) | FastV(layer=16, keep=32)`. `Downscale(pixels=...) |` in front turns the processor
            down while the block lasts.
        processor: needed only to read the question out of the prompt, and by `Downscale`.
        relevance: as for `prepare`.
        positions: "repack", "original" or "auto" (by family and share of tokens kept), see `prepare`.
        question_for: "all" pictures are chosen with the question, or only the "newest" of each prompt.

    Raises:
        UnsupportedModelError: no adapter for the model, or a Transformers release without `mm_encoder_outputs`.
        RelevanceError: the method reads relevance and no text tower pairs with this model.
        UsageError: no method, or layers that this language model does not have.
    """
    downscale, method = without_downscale(method)
    before_llm, in_llm = split(method)
    if in_llm and hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            "a compiled model skips the hooks that prune inside it: give the model itself, or prune before it."
        )
    model = unwrapped(model)
    _check_forward(model)
    adapter = find(model)
    before, scorer = resolve_scorer(adapter, before_llm or KeepAll(), relevance)
    check_question_for(question_for, before)
    ordered = any(m.ordered for m in in_llm)
    if ordered and before_llm is None:
        raise UsageError(
            "late follows the order of a method before the language model: write FSR(keep=...) | Late(...)."
        )
    resolution = None if downscale is None else Resolution(processor, downscale.pixels)
    work = Work(adapter, before, scorer, processor, positions, question_for, ordered, resolution)
    return Pruner(model, work, InLLMHooks(model, list(adapter.placeholder_ids().values()), in_llm) if in_llm else None)


class Pruner(PrunedCalls):
    """A method bound to a model; see `prune`. `last` is the report of the latest finished call, of whichever thread."""

    def __init__(self, model: Any, work: Work, in_llm: InLLMHooks | None = None) -> None:
        super().__init__(model, work, in_llm)
        self._handles: list[Any] = []
        self._installed: PrunedGenerate | None = None
        self._twins: list[ReferenceType[Pruner]] = []
        self._turned_down = False

    @property
    def method(self) -> Method | InLLMMethod | Chain:
        """The method as it runs (with relevance switched off where that was asked for)."""
        if self.in_llm is None:
            return self.work.method
        before_llm = None if isinstance(self.work.method, KeepAll) else self.work.method
        methods = self.in_llm.methods
        return methods[0] if before_llm is None and len(methods) == 1 else Chain(before_llm, methods)

    def __enter__(self) -> Pruner:
        return self.apply()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.remove()
        except UsageError as complaint:
            if kind is None:
                raise
            warnings.warn(str(complaint), UserWarning, stacklevel=2)  # the user's own exception is on its way out

    def apply(self) -> Pruner:
        """Install on the model until `remove`. All of it, or (on any error) nothing.

        Raises:
            UsageError: the model is pruned already (two methods on one model: use `prepare`).
        """
        here, on = self.model.__dict__, self._handles.append
        _forget_left_over(here)
        if PRUNER_ATTRIBUTE in here:
            raise UsageError(
                "this model is pruned already: leave that block first, or use prepare() for a second method."
            )
        earlier = here.get("generate")
        try:
            here[PRUNER_ATTRIBUTE] = self
            if self.work.resolution is not None:
                self.work.resolution.apply()
                self._turned_down = True
            here["generate"] = self._installed = PrunedGenerate(self, earlier)
            on(self.model.register_forward_pre_hook(_before_forward, with_kwargs=True))
            if self.adapter.base is not self.model:
                on(self.adapter.base.register_forward_pre_hook(self._before_base, with_kwargs=True))
            if self.in_llm is not None:
                self.in_llm.attach()
            # Behind the hooks of methods inside the language model, which complete the report.
            on(self.model.register_forward_hook(_after_forward, with_kwargs=True, always_call=True))
        except BaseException:
            self._take_off()
            raise
        return self

    def remove(self) -> None:
        """Take everything off again.

        Raises:
            UsageError: not applied, or something else replaced `generate` in the meantime.
        """
        if not self.applied:
            raise UsageError("this pruner is not applied to its model.")
        ours = self.model.__dict__.get("generate") is self._installed
        self._take_off()
        if not ours:
            raise UsageError(
                "something replaced model.generate inside the block: undo that first, it still points at pruning."
            )

    @property
    def applied(self) -> bool:
        """Whether it is on its model right now."""
        return self.model.__dict__.get(PRUNER_ATTRIBUTE) is self

    def _take_off(self) -> None:
        here = self.model.__dict__
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.in_llm is not None:
            self.in_llm.detach()
        if self.work.resolution is not None and self._turned_down:
            self.work.resolution.restore()
            self._turned_down = False
        here.pop(PRUNER_ATTRIBUTE, None)
        installed, self._installed = self._installed, None
        if installed is not None and here.get("generate") is installed:
            del here["generate"]
            if installed.earlier is not None:
                here["generate"] = installed.earlier
        twins, self._twins = self._twins, []
        for twin in (found for reference in twins if (found := reference()) is not None and found.applied):
            twin._take_off()

    def __getstate__(self) -> dict[str, Any]:
        """A model that is pickled inside the block stays pruned: the other process has no block. Copies stay here."""
        return {**self.__dict__, "_twins": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """A copied model is pruned by a pruner of its own, until the block of this one ends. Method, processor and text
        tower are shared (they hold no state of the model); scorers of features read the model's weights and are copied
        with it."""
        twin = Pruner.__new__(Pruner)
        memo[id(self)] = twin
        twin.model = copy.deepcopy(self.model, memo)
        w = self.work
        scorer = copy.deepcopy(w.scorer, memo) if reads_features(w.scorer) else w.scorer
        twin.work = replace(w, adapter=copy.deepcopy(w.adapter, memo), scorer=scorer)
        twin.in_llm = copy.deepcopy(self.in_llm, memo)
        twin.last = self.last
        twin._handles = copy.deepcopy(self._handles, memo)
        twin._installed = copy.deepcopy(self._installed, memo)
        twin._twins, twin._turned_down = [], False
        self._twins.append(ref(twin))
        return twin


class PrunedGenerate:
    """What stands on a pruned model in place of `generate`. A wrapper that outlives the block is led on to the
    `generate` before it."""

    def __init__(self, pruner: Pruner, earlier: Callable[..., Any] | None) -> None:
        self.pruner, self.earlier = pruner, earlier

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The signature of the model's own, and `question`."""
        model = self.pruner.model
        generate = self.earlier or types.MethodType(type(model).generate, model)
        if self.pruner.applied and self.pruner._installed is self:
            return self.pruner._generate(generate, args, kwargs)
        return generate(*args, **kwargs)


# Module-level functions, bound anew by a deep copy of the model: a closure would keep running the original's weights.


def _before_forward(model: nn.Module, args: Any, kwargs: Any) -> Any:
    pruner = model.__dict__.get(PRUNER_ATTRIBUTE)
    if pruner is None:
        raise UsageError("this is a copy.copy() of a pruned model, which shares its hooks: use copy.deepcopy().")
    return pruner._forward(args, kwargs)


def _after_forward(model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    # `generate` hands an empty dict on where it was given no features: nothing of a prompt ran here.
    if kwargs.get("mm_encoder_outputs") and PRUNER_ATTRIBUTE in model.__dict__:
        model.__dict__[PRUNER_ATTRIBUTE]._after(kwargs, output)


def _forget_left_over(here: dict[str, Any]) -> None:
    """`copy.copy` of a pruned model takes over what stands on it, and keeps it when the block is over."""
    other = here.get(PRUNER_ATTRIBUTE)
    if other is not None and not other.applied:
        del here[PRUNER_ATTRIBUTE]
        if isinstance(here.get("generate"), PrunedGenerate):
            earlier = here.pop("generate").earlier
            if earlier is not None:
                here["generate"] = earlier


def _check_forward(model: Any) -> None:
    taken = inspect.signature(type(model).forward).parameters
    if "mm_encoder_outputs" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    from transformers import LlavaForConditionalGeneration

    old = "mm_encoder_outputs" not in inspect.signature(LlavaForConditionalGeneration.forward).parameters
    raise UnsupportedModelError(
        f"{type(model).__name__}.forward takes no `mm_encoder_outputs`: "
        + ("install transformers>=5.18." if old else "take a model that hands it on, or let forward take **kwargs.")
    )
