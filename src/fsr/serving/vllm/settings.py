"""What the engine and a single request ask for.

The engine: `hf_overrides={"fsr": {"method": "fsr", "keep": 64, "relevance": "auto", "options": {"alpha": 2}}}`.
A request: `mm_processor_kwargs={"fsr_keep": 32, "fsr_question": "..."}`; `fsr_keep` 0 leaves its pictures whole. (The
server takes these only with `--trust-request-mm-kwargs`.) The words of `arguments` do in both places.

Placeholders are laid out in the front end, before any picture is encoded, so K is a pure function of sizes here, known
on both sides: `EngineSettings.count`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from fsr.errors import BudgetError, QuestionError, UsageError, counted
from fsr.methods.base import Method, get
from fsr.methods.picture_budgets import ByAge, by_age
from fsr.pipeline.select import QuestionFor, check_question_for
from fsr.serving.vllm.arguments import (
    KEEP,
    METHOD,
    QUESTION,
    QUESTION_FOR,
    RATE,
    budget_of,
    named_method,
    refuse_near_misses,
)
from fsr.signals.calibration import RelevanceCalibration, calibration_beside, load_calibration
from fsr.signals.question import check_characters

__all__ = ["OWN", "EngineSettings", "Request"]

# The engine checks the length of prompts, but not of this.
LONGEST = 4096
OWN = "own"
_KNOWN = ("method", "keep", "relevance", "options", "question_for", RATE, METHOD)


@dataclass(frozen=True)
class Request:
    """What a request asks for one of its pictures.

    keep: budget per picture (see `Method.keep`), 0 for unpruned. question: None where nothing reads it.
    picture: a digest of the picture and of what the processor made of it; "" for the engine's trial runs. identity:
    what the engine knows its tokens by, in all its caches: a digest of the above and of the method.
    """

    keep: int | float
    question: str | None = None
    picture: str = ""
    identity: str = ""

    def to_tensor(self) -> Tensor:
        """uint8 [n]: how it travels from the front end to the model, beside the pixels."""
        return torch.frombuffer(
            bytearray(json.dumps([self.keep, self.question, self.picture, self.identity]).encode()), dtype=torch.uint8
        )

    @staticmethod
    def from_tensor(data: Tensor) -> Request:
        """The inverse of `to_tensor`."""
        return Request(*json.loads(bytes(data.cpu().tolist())))


@dataclass(frozen=True)
class EngineSettings:
    """The method and where relevance comes from, for the whole engine.

    method: what chooses; requests bring their own budget. keep: the budget of requests that ask for none, 0 for off,
    or by the pictures' age. relevance: "auto" (the paired text tower), "none", "first-layer", "embedding", or a folder
    with a `text_tower/`; calibration: how to read the last but one or two, where `fsr calibrate` measured it.
    question_for: "all" pictures are chosen with the question, or the "newest" of a prompt only, or each with that of
    its "own" turn, whatever is asked later.
    """

    method: Method
    keep: int | float | ByAge
    relevance: str = "auto"
    question_for: str = "all"
    calibration: RelevanceCalibration | None = None

    @staticmethod
    def of(config: Any, paired_text_tower: bool, folder: str = "") -> EngineSettings:
        """From the `fsr` entry of a model's config.

        paired_text_tower: whether a public text tower pairs with this family; without one "auto" means the calibration
        in the model's `folder`, or "none", as for `prune`.

        Raises:
            UsageError: no such entry, unknown keys or options, or a method that cannot run inside the engine.
            BudgetError: a budget out of range. RelevanceError: a file that `fsr calibrate` did not write.
        """
        given = getattr(config, "fsr", None)
        if not isinstance(given, Mapping):
            raise UsageError(
                "the engine does not know how many tokens to keep: give "
                """--hf-overrides '{"architectures": [...], "fsr": {"keep": 64}}'."""
            )
        if unknown := sorted(set(given) - set(_KNOWN)):
            raise UsageError(
                f"fsr: unknown settings {', '.join(unknown)}: use {', '.join(_KNOWN)} "
                "(options of the method go into 'options')."
            )
        keep: Any
        if isinstance(aged := given.get("keep"), Mapping):
            keep = _by_age(aged)
        elif isinstance(keep := budget_of(given, "keep", 64), list):
            raise UsageError("fsr: a list of budgets belongs to one request; for all of them give keep by age.")
        options, name = dict(given.get("options") or {}), named_method(given, "method", "fsr")
        # Requests bring their budgets; with a default of 0 (off), too.
        method = get(name, keep=1.0, **options)
        if not isinstance(method, Method):
            raise UsageError(f"{name} prunes inside the language model: vLLM can only prune before it.")
        if method.per != "image":
            raise UsageError(f"per={method.per!r} depends on the picture's tiles: inside vLLM give keep per picture.")
        relevance = str(given.get("relevance", "auto"))
        calibration = None
        if relevance.endswith(".json"):
            calibration = load_calibration(relevance)
        elif relevance == "auto" and method.own_relevance is None and not paired_text_tower:
            calibration = calibration_beside(folder)
        if calibration is not None:
            relevance = calibration.relevance
        elif relevance == "auto":
            relevance = method.own_relevance or ("auto" if paired_text_tower else "none")
        if relevance == "none" and "relevance" in method.signals():
            if not hasattr(method, "relevance"):
                raise UsageError(
                    f"{method.name} cannot do without relevance: give relevance='embedding', or another method."
                )
            method = replace(method, relevance="none")  # type: ignore[call-arg]
        question_for = _question_for(given.get("question_for", "all"), method)
        return EngineSettings(method, keep, relevance, question_for, calibration)

    @property
    def reads_question(self) -> bool:
        """Whether tokens are chosen by the question: then two questions about one picture share no cache entry."""
        return "relevance" in self.method.signals()

    def keeps_of(self, arguments: Mapping[str, object], pictures: int) -> list[int | float]:
        """The budget of each picture that a request's `mm_processor_kwargs` ask for.

        Raises:
            BudgetError: out of range, two that contradict each other, or a list that does not fit the pictures.
            UsageError: an argument that is nearly one of ours, or another method than the engine's.
        """
        refuse_near_misses(arguments)
        if (name := named_method(arguments, METHOD, self.method.name)) != self.method.name:
            raise UsageError(f"{METHOD}={name}: this engine was started with {self.method.name}; leave it out.")
        keep = budget_of(arguments, KEEP, self.keep)
        if isinstance(keep, ByAge):
            return [keep(i, pictures, 0, None) for i in range(pictures)]
        return _per_picture(keep, pictures, KEEP)

    def questions_of(self, arguments: Mapping[str, object], pictures: int) -> list[str | None]:
        """The question that each picture is chosen by, as far as a request gives it; None for the prompt's own.

        Raises:
            QuestionError: no text, an empty one, one beyond `LONGEST` characters, or a list that does not fit.
        """
        given = _per_picture(arguments.get(QUESTION), pictures, QUESTION)
        for question in given:
            if question is None:
                continue
            if not (isinstance(question, str) and question.strip()):
                raise QuestionError(f"{QUESTION} is empty: leave it out to take the prompt's own question.")
            check_characters(question)
            if len(question) > LONGEST:
                raise QuestionError(f"{QUESTION} has {len(question)} characters: give at most {LONGEST}.")
        return given

    def asked(self, arguments: Mapping[str, object], pictures: int) -> list[bool]:
        """Whether each picture is chosen by a question.

        Raises:
            UsageError, RelevanceError: see `fsr.pipeline.select.check_question_for`.
        """
        newest = self.which(arguments) == "newest"
        return [self.reads_question and (not newest or i == pictures - 1) for i in range(pictures)]

    def which(self, arguments: Mapping[str, object]) -> str:
        """`question_for` of a request: "all", "newest" or "own"."""
        return _question_for(arguments.get(QUESTION_FOR, self.question_for), self.method)

    def count(self, keep: int | float, total: int, structural: int = 0) -> int:
        """K of a picture with `total` tokens, `structural` of which are no patches (newlines) and fall first."""
        if keep == 0:
            return total
        k = replace(self.method, keep=keep).budget(total)
        return total if k >= total else min(k, total - structural)


def _per_picture(value: Any, pictures: int, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value] * pictures
    if len(value) != pictures:
        raise BudgetError(
            f"{name} has {counted(len(value), 'value')} and the request {counted(pictures, 'picture')}: give one for "
            "all, or one per picture in prompt order."
        )
    return list(value)


def _by_age(given: Mapping[str, Any]) -> ByAge:
    try:
        return by_age(**given)
    except TypeError:
        raise UsageError(
            f"fsr: keep={dict(given)} is no budget by age: give newest, older, oldest and recent."
        ) from None


def _question_for(value: Any, method: Method) -> str:
    if value not in (*get_args(QuestionFor), OWN):
        raise UsageError(f"question_for={value!r} is unknown: use 'all', 'newest' or 'own'.")
    if value != OWN:
        check_question_for(value, method)
    return str(value)
