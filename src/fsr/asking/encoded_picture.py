"""Many questions and many methods on one picture, which is encoded once: what the report and the demo ask with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from fsr.adapters import find
from fsr.adapters.wrappers import unwrapped
from fsr.asking.chat import chat_inputs
from fsr.errors import UsageError
from fsr.methods.base import Method, Picks
from fsr.methods.picture_budgets import Keep
from fsr.pipeline.encode import EncodedPrompt, encode
from fsr.pipeline.prepare import Prepared, Report, Work
from fsr.pipeline.pruner import Pruner
from fsr.tokens import Selection, VisualTokens

__all__ = ["AllTokens", "EncodedPicture", "TimedAnswer"]

_guard = Lock()
_locks: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()


class AllTokens(Method):
    """Prunes nothing: the same path with all tokens, so that answers and times compare."""

    name = "all tokens"

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """Never called: a budget of all tokens leaves every image whole."""
        raise UsageError(f"all tokens were to be kept, not {k}.")


@dataclass(frozen=True)
class TimedAnswer:
    """One answer. tokens: what the method was given: features and scores of all N tokens. stages_ms: milliseconds by
    stage; vision_tower and saliency are those of the one run that all answers about this picture share."""

    text: str
    report: Report
    tokens: VisualTokens
    stages_ms: Mapping[str, float]

    @property
    def selection(self) -> Selection:
        """What was kept."""
        return self.report.selections[0]


class EncodedPicture:
    """A picture that a model is asked about again and again. Threads that share the model wait for each other.

    Args:
        methods: all that may be asked with; the vision tower runs once and records what any of them reads.
        relevance: as for `prune`.

    Raises:
        UsageError: a method that does not prune before the language model.
    """

    def __init__(
        self, model: Any, processor: Any, image: Image.Image, methods: Sequence[Method], *, relevance: Any = "auto"
    ) -> None:
        for method in methods:
            if not isinstance(method, Method):
                name = getattr(method, "name", type(method).__name__)
                raise UsageError(f"{name} does not prune before the language model: choose another method.")
        self.inner = unwrapped(model)
        self.model = model if hasattr(model, "generate") else self.inner
        self.processor, self.image, self.relevance = processor, image, relevance
        self.methods = tuple(methods)
        self.seen: EncodedPrompt | None = None
        # A model can carry one pruner at a time, whoever asks.
        with _guard:
            self._lock = _locks.setdefault(self.inner, Lock())

    def ask(self, question: str, method: Method | None = None, *, max_new_tokens: int = 32) -> TimedAnswer:
        """Greedy answer from what `method` keeps, or from all tokens (None).

        Raises:
            UsageError: the prompt does not hold exactly one picture, or `method` reads a signal that none of `methods`
                reads. AllTokens that `prune` raises.
        """
        with self._lock, torch.inference_mode():
            return self._ask(question, method or AllTokens(keep=1.0), max_new_tokens)

    def _ask(self, question: str, method: Method, longest: int) -> TimedAnswer:
        began = perf_counter()
        inputs = {
            k: v.to(self.inner.device) if isinstance(v, Tensor) else v
            for k, v in chat_inputs(self.processor, self.image, question).items()
        }
        before = perf_counter()
        if self.seen is None:
            self.seen = encode(self.model, inputs, *self.methods, relevance=self.relevance)
        ready = perf_counter()
        adapter = find(self.model)
        method, scorer = self.seen.resolve(adapter, method, self.relevance)
        recorder: Any = _Recorder(method)
        pruner = Pruner(self.inner, _SeenWork(adapter, recorder, scorer, self.processor, "auto", seen=self.seen))
        clock = _FirstToken()
        with pruner:
            out = self.model.generate(
                **inputs, question=question, max_new_tokens=longest, do_sample=False, streamer=clock
            )
        done = perf_counter()
        report = pruner.last
        if report is None or len(report.selections) != 1:
            raise UsageError("the prompt must hold one picture: the model's chat template dropped it or repeated it.")
        text = self.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        first = clock.first or done
        stages = {"preprocess": 1e3 * (before - began)}
        for name in ("vision_tower", "saliency"):
            stages[name] = sum(part.timings.get(name, 0.0) for part in self.seen.parts)
        stages |= {name: report.timings[name] for name in ("text_tower", "selection")}
        stages["prefill"] = 1e3 * (first - ready) - report.timings["total"]
        stages["decode"] = 1e3 * (done - first)
        return TimedAnswer(text, report, recorder.seen[0], {k: round(v, 3) for k, v in stages.items()})


@dataclass(frozen=True, kw_only=True)
class _SeenWork(Work):
    """Pruning of prompts whose pictures were encoded before."""

    seen: EncodedPrompt

    def run(self, *args: Any, **kwargs: Any) -> Prepared:
        """See `Work.run`."""
        return super().run(*args, **kwargs, seen=self.seen)


class _Recorder:
    """Passes everything on to a method and keeps what it was given."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.seen: list[VisualTokens] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def __call__(self, images: Sequence[VisualTokens], keeps: Sequence[Keep] | None = None) -> list[Selection]:
        self.seen = list(images)
        return self.method(images, keeps)


class _FirstToken:
    """A streamer that notes when the first new token came: `generate` hands it the prompt first, then every token."""

    def __init__(self) -> None:
        self.calls = 0
        self.first: float | None = None

    def put(self, _: Tensor) -> None:
        """Called with the prompt, then with each token."""
        self.calls += 1
        if self.calls == 2:
            self.first = perf_counter()

    def end(self) -> None:
        """Nothing to flush."""
