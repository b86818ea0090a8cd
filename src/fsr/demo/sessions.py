"""What one visitor works on: the last picture, encoded once, and the answers about it. In memory only."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

from PIL import Image

from fsr.asking.encoded_picture import EncodedPicture, TimedAnswer
from fsr.demo.models import OfferedModel, OfferedModels
from fsr.errors import QuestionError, UsageError
from fsr.methods import available
from fsr.methods.base import Method
from fsr.pipeline.center_crop import placed
from fsr.view.comparison import Comparison, MethodRun, cropped_as_seen, notes_of, run_of

__all__ = ["LONGEST_QUESTION", "Session", "Sessions"]

LONGEST_QUESTION = 500
KEPT_ANSWERS = 64


class Session:
    """One visitor's picture. `encoded` counts how often a vision tower ran for it."""

    def __init__(self, models: OfferedModels) -> None:
        self.models = models
        self.encoded = 0
        self.lock = Lock()
        self._at: tuple[str, bytes] | None = None
        self._picture: EncodedPicture | None = None
        self._answers: OrderedDict[tuple[str, str, int], TimedAnswer] = OrderedDict()

    def ask(
        self,
        image: Image.Image,
        question: str,
        model: str,
        methods: Sequence[str],
        keep: int,
        tell: Callable[[float, str], None],
    ) -> Comparison:
        """One question answered: all tokens, and each method at the same budget.

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
            offered = self.models.take(model)
            for name in methods:
                if name not in offered.methods:
                    raise UsageError(f"{name} does not work with {model}: choose one of {', '.join(offered.methods)}.")
            picture = self._open(image, model, offered)
            tell(0.25, "looking at the picture")
            whole = self._answer(picture, question, None, 0)
            runs = []
            for i, name in enumerate(dict.fromkeys(methods)):
                tell(0.4 + 0.5 * i / len(methods), f"answering with {name}")
                method: Method = available()[name](keep=keep)
                runs.append(run_of(method, self._answer(picture, question, method, keep)))
            unpruned = MethodRun("all tokens", whole.text, placed(whole.selection, None), whole.stages_ms)
            notes = (*([offered.note] if offered.note else []), *notes_of(runs))
            return Comparison(question, model, cropped_as_seen(offered.processor, image), unpruned, tuple(runs), notes)

    def _open(self, image: Image.Image, model: str, offered: OfferedModel) -> EncodedPicture:
        at = (model, hashlib.blake2b(image.tobytes() + repr(image.size).encode()).digest())
        if at != self._at or self._picture is None:
            methods = [available()[name](keep=1) for name in offered.methods]
            self._picture = EncodedPicture(
                offered.model, offered.processor, image, methods, relevance=offered.relevance
            )
            self._at = at
            self._answers.clear()
        return self._picture

    def _answer(self, picture: EncodedPicture, question: str, method: Method | None, keep: int) -> TimedAnswer:
        key = (question, method.name if method else "", keep)
        if key not in self._answers:
            self.encoded += picture.seen is None
            self._answers[key] = picture.ask(question, method)
            while len(self._answers) > KEPT_ANSWERS:
                self._answers.popitem(last=False)
        return self._answers[key]


class Sessions:
    """The sessions of all visitors, the longest unused ones cleared away."""

    def __init__(self, models: OfferedModels, most: int = 16) -> None:
        self.models, self.most = models, most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def of(self, visitor: str) -> Session:
        """The visitor's session."""
        with self._lock:
            session = self._sessions.setdefault(visitor, Session(self.models))
            self._sessions.move_to_end(visitor)
            while len(self._sessions) > self.most:
                self._sessions.popitem(last=False)
            return session

    def clear(self, visitor: str) -> None:
        """The visitor left."""
        with self._lock:
            self._sessions.pop(visitor, None)

    def __len__(self) -> int:
        return len(self._sessions)
