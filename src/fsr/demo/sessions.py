"""What one visitor works on: the last picture, encoded once, and the answers about it. In memory only."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

from PIL import Image

from fsr.asking.one_picture import Asked, OnePicture
from fsr.demo.models import Offered, Shelf
from fsr.errors import QuestionError, UsageError
from fsr.methods import available
from fsr.methods.base import Method
from fsr.view.comparison import Case, Shown, as_seen, notes_of, shown_of

__all__ = ["LONGEST_QUESTION", "Desk", "Desks"]

LONGEST_QUESTION = 500
KEPT_ANSWERS = 64


class Desk:
    """One visitor's picture. `encoded` counts how often a vision tower ran for it."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.encoded = 0
        self.lock = Lock()
        self._at: tuple[str, bytes] | None = None
        self._picture: OnePicture | None = None
        self._answers: OrderedDict[tuple[str, str, int], Asked] = OrderedDict()

    def ask(
        self,
        image: Image.Image,
        question: str,
        model: str,
        methods: Sequence[str],
        keep: int,
        tell: Callable[[float, str], None],
    ) -> Case:
        """The case of one question: all tokens, and each method at the same budget.

        Raises:
            QuestionError, UsageError: empty or endless question, unknown model or method.
        """
        question = question.strip()
        if not question:
            raise QuestionError("The question is empty: write what you want to know about the picture.")
        if len(question) > LONGEST_QUESTION:
            raise QuestionError(f"The question has {len(question)} characters: ask in at most {LONGEST_QUESTION}.")
        with self.lock:
            tell(0.05, "loading the model")
            offered = self.shelf.take(model)
            for name in methods:
                if name not in offered.methods:
                    raise UsageError(f"{name} does not work with {model}: choose one of {', '.join(offered.methods)}.")
            picture = self._open(image, model, offered)
            tell(0.25, "looking at the picture")
            whole = self._answer(picture, question, None, 0)
            shown = []
            for i, name in enumerate(dict.fromkeys(methods)):
                tell(0.4 + 0.5 * i / len(methods), f"answering with {name}")
                method: Method = available()[name](keep=keep)
                shown.append(shown_of(method, self._answer(picture, question, method, keep)))
            unpruned = Shown("all tokens", whole.text, whole.selection, whole.stages_ms)
            notes = (*([offered.note] if offered.note else []), *notes_of(shown))
            return Case(question, model, as_seen(offered.processor, image), unpruned, tuple(shown), notes)

    def _open(self, image: Image.Image, model: str, offered: Offered) -> OnePicture:
        at = (model, hashlib.blake2b(image.tobytes() + repr(image.size).encode()).digest())
        if at != self._at or self._picture is None:
            methods = [available()[name](keep=1) for name in offered.methods]
            self._picture = OnePicture(offered.model, offered.processor, image, methods, relevance=offered.relevance)
            self._at = at
            self._answers.clear()
        return self._picture

    def _answer(self, picture: OnePicture, question: str, method: Method | None, keep: int) -> Asked:
        key = (question, method.name if method else "", keep)
        if key not in self._answers:
            self.encoded += picture.seen is None
            self._answers[key] = picture.ask(question, method)
            while len(self._answers) > KEPT_ANSWERS:
                self._answers.popitem(last=False)
        return self._answers[key]


class Desks:
    """The desks of all visitors, the longest unused ones cleared away."""

    def __init__(self, shelf: Shelf, most: int = 16) -> None:
        self.shelf, self.most = shelf, most
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._lock = Lock()

    def of(self, visitor: str) -> Desk:
        """The visitor's desk."""
        with self._lock:
            desk = self._desks.setdefault(visitor, Desk(self.shelf))
            self._desks.move_to_end(visitor)
            while len(self._desks) > self.most:
                self._desks.popitem(last=False)
            return desk

    def clear(self, visitor: str) -> None:
        """The visitor left."""
        with self._lock:
            self._desks.pop(visitor, None)

    def __len__(self) -> int:
        return len(self._desks)
