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
from typing import Any

import torch
from torch import Tensor

from fsr.errors import QuestionError, UsageError
from fsr.methods.base import Method, get
from fsr.serving.vllm.arguments import KEEP, METHOD, QUESTION, RATE, budget_of, named_method, refuse_near_misses

__all__ = ["EngineSettings", "Request"]

# The engine checks the length of prompts, but not of this.
LONGEST = 4096
_KNOWN = ("method", "keep", "relevance", "options", RATE, METHOD)


@dataclass(frozen=True)
class Request:
    """What a request asks for one of its pictures.

    keep: budget per picture (see `Method.keep`), 0 for unpruned. question: None where nothing reads it.
    picture: a digest of the picture and of what the processor made of it; "" for the engine's trial runs.
    """

    keep: int | float
    question: str | None = None
    picture: str = ""

    def to_tensor(self) -> Tensor:
        """uint8 [n]: how it travels from the front end to the model, beside the pixels."""
        return torch.frombuffer(
            bytearray(json.dumps([self.keep, self.question, self.picture]).encode()), dtype=torch.uint8
        )

    @staticmethod
    def from_tensor(data: Tensor) -> Request:
        """The inverse of `to_tensor`."""
        return Request(*json.loads(bytes(data.cpu().tolist())))


@dataclass(frozen=True)
class EngineSettings:
    """The method and where relevance comes from, for the whole engine.

    method: what chooses; requests bring their own budget. keep: the budget of requests that ask for none, 0 for off.
    relevance: "auto", "none", "embedding", or a folder with a `text_tower/`.
    """

    method: Method
    keep: int | float
    relevance: str = "auto"

    @staticmethod
    def of(config: Any, paired_text_tower: bool) -> EngineSettings:
        """From the `fsr` entry of a model's config.

        paired_text_tower: whether a public text tower pairs with this family; without one "auto" means "none", as for
        `prune`.

        Raises:
            UsageError: no such entry, unknown keys or options, or a method that cannot run inside the engine.
            BudgetError: a budget out of range.
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
        keep, options = budget_of(given, "keep", 64), dict(given.get("options") or {})
        name = named_method(given, "method", "fsr")
        # With a default of 0 (off) the method still serves requests that set a budget.
        method = get(name, keep=keep if keep != 0 else 1.0, **options)
        if not isinstance(method, Method):
            raise UsageError(f"{name} prunes inside the language model: vLLM can only prune before it.")
        if method.per != "image":
            raise UsageError(f"per={method.per!r} depends on the picture's tiles: inside vLLM give keep per picture.")
        relevance = str(given.get("relevance", "auto"))
        if relevance == "auto" and not paired_text_tower:
            relevance = "none"
        if relevance == "none" and "relevance" in method.signals():
            if not hasattr(method, "relevance"):
                raise UsageError(
                    f"{method.name} cannot do without relevance: give relevance='embedding', or another method."
                )
            method = replace(method, relevance="none")  # type: ignore[call-arg]
        return EngineSettings(method, keep, relevance)

    @property
    def reads_question(self) -> bool:
        """Whether tokens are chosen by the question: then two questions about one picture share no cache entry."""
        return "relevance" in self.method.signals()

    def keep_of(self, arguments: Mapping[str, object]) -> int | float:
        """The budget that a request's `mm_processor_kwargs` ask for.

        Raises:
            BudgetError: out of range, or two that contradict each other.
            UsageError: an argument that is nearly one of ours, or another method than the engine's.
        """
        refuse_near_misses(arguments)
        if (name := named_method(arguments, METHOD, self.method.name)) != self.method.name:
            raise UsageError(f"{METHOD}={name}: this engine was started with {self.method.name}; leave it out.")
        return budget_of(arguments, KEEP, self.keep)

    def question_of(self, arguments: Mapping[str, object]) -> str | None:
        """The question that a request gives explicitly, or None.

        Raises:
            QuestionError: no text, an empty one, or one beyond `LONGEST` characters.
        """
        question = arguments.get(QUESTION)
        if question is None:
            return None
        if not (isinstance(question, str) and question.strip()):
            raise QuestionError(f"{QUESTION} is empty: leave it out to take the prompt's own question.")
        if len(question) > LONGEST:
            raise QuestionError(f"{QUESTION} has {len(question)} characters: give at most {LONGEST}.")
        return question

    def count(self, keep: int | float, total: int, structural: int = 0) -> int:
        """K of a picture with `total` tokens, `structural` of which are no patches (newlines) and fall first."""
        if keep == 0:
            return total
        k = replace(self.method, keep=keep).budget(total)
        return total if k >= total else min(k, total - structural)
