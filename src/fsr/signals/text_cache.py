"""Embeddings of questions, kept, and on CUDA made beside the vision tower.

Question and picture do not know each other before their similarity is taken. On CUDA the text tower therefore runs on a
stream of its own, as soon as the vision tower has been launched: its few small kernels find room beside the large ones.
Whoever reads an embedding waits, on the device, for the event that marks it done. Anywhere else an embedding is made
when it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fsr.signals.tap import hook_lock

__all__ = ["TextCache", "texts_beside"]

_MOST = 256


class TextCache:
    """The embeddings of the last 256 questions.

    Args:
        embed: a question and a device to a vector [P].
    """

    def __init__(self, embed: Callable[[str, torch.device], Tensor]) -> None:
        self._embed = embed
        self._known: OrderedDict[tuple[str, torch.device], tuple[Tensor, Any]] = OrderedDict()
        self._streams: dict[torch.device, Any] = {}

    def __call__(self, question: str, device: torch.device) -> Tensor:
        """The vector of a question, ready for the current stream."""
        known = self._known.get((question, device))
        if known is None:
            return self._keep(question, device, self._embed(question, device), self._mark(device))
        vector, done = known
        if done is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(done)
            vector.record_stream(stream)  # or its memory could be handed out again while this stream still reads it
        return vector

    @contextmanager
    def beside(self, tower: nn.Module, questions: Iterable[str], device: torch.device) -> Iterator[None]:
        """While this lasts, a forward of `tower` is followed, on CUDA, by embedding `questions` on another stream."""
        if device.type != "cuda":
            yield
            return
        stream = self._streams.setdefault(device, torch.cuda.Stream(device))
        before = torch.cuda.current_stream(device).record_event()  # what was queued before the tower, not the tower

        def begin(*_: Any) -> None:
            for question in questions:
                if (question, device) in self._known:
                    continue
                stream.wait_event(before)
                with torch.cuda.stream(stream):
                    self._keep(question, device, self._embed(question, device), self._mark(device))

        with hook_lock:
            handle = tower.register_forward_hook(begin)
        try:
            yield
        finally:
            with hook_lock:
                handle.remove()

    def _mark(self, device: torch.device) -> Any:
        return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def _keep(self, question: str, device: torch.device, vector: Tensor, done: Any) -> Tensor:
        self._known[question, device] = (vector, done)
        while len(self._known) > _MOST:
            self._known.pop(next(iter(self._known)), None)
        return vector


def texts_beside(
    scorer: Any, questions: Sequence[str | None] | None, tower: Callable[[], nn.Module]
) -> AbstractContextManager[None]:
    """While the vision tower runs, embed the questions on another stream, where scorer and device can do so.

    tower: asked for only then, since not every model has one.
    """
    texts = getattr(scorer, "texts", None)
    if questions is None or not isinstance(texts, TextCache):
        return nullcontext()
    found = tower()
    return texts.beside(found, [q for q in questions if q], next(found.parameters()).device)
