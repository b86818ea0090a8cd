"""The selection step of a call: every picture gets its budget and, if it may see it, the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal, get_args

import torch

from fsr.errors import RelevanceError, UsageError
from fsr.methods.base import Method
from fsr.methods.picture_budgets import Keep, Shape, per_picture
from fsr.pipeline.shorten import Run
from fsr.tokens import Selection, VisualTokens

__all__ = ["QuestionFor", "check_question_for", "select", "without_relevance"]

# Which pictures of a prompt are chosen with the question: all, or only the last one. What the others keep then does not
# depend on later turns of a conversation, and a KV cache of them stays good.
QuestionFor = Literal["all", "newest"]


def check_question_for(value: Any, method: Method) -> None:
    """Raise unless `question_for` is known and the method can work without the question where it must."""
    if value not in get_args(QuestionFor):
        raise UsageError(f"question_for={value!r} is unknown: use 'all' or 'newest'.")
    if value == "newest":
        without_relevance(method)


def without_relevance(method: Method) -> Method:
    """The same method choosing without the question.

    Raises:
        RelevanceError: it has no such option.
    """
    if "relevance" not in method.signals():
        return method
    if "relevance" not in {f.name for f in fields(method)}:
        raise RelevanceError(
            f"{method.name} chooses by the question, and question_for='newest' gives it to the newest picture only: "
            "use question_for='all', or a method that works without (FSR does)."
        )
    changes: dict[str, Any] = {"relevance": "none"}
    return replace(method, **changes)


def select(
    method: Method,
    units: Sequence[VisualTokens],
    runs: Sequence[Run],
    question_for: QuestionFor,
    ordered: bool,
    keeps: Sequence[Keep] | None = None,
) -> list[Selection]:
    """Choose from every picture of a call.

    Args:
        units: the pictures in the order of the encoder; runs: where each stands in the prompts.
        ordered: whether a later drop follows the order of choice, which a picture that is kept whole has, too, then.
        keeps: the budget of each picture in prompt order, where it was worked out before.

    Raises:
        BudgetError: a budget per picture that does not fit these pictures.
        FeatureError, RelevanceError: see `Method.__call__`.
    """
    # Pictures and clips are encoded apart; budgets count them as the prompt shows them.
    order = sorted(range(len(units)), key=lambda i: (runs[i].row, int(runs[i].places[0])))
    prompts = [runs[i].row for i in order]
    if keeps is None:
        keeps = per_picture(method.keep, [Shape.of(units[i]) for i in order], prompts)
    groups: dict[bool, list[int]] = {}
    for at, prompt in enumerate(prompts):
        asked = question_for == "all" or at + 1 == len(prompts) or prompts[at + 1] != prompt
        groups.setdefault(asked, []).append(at)
    chosen: dict[int, Selection] = {}
    for asked, members in groups.items():
        one = method if asked else without_relevance(method)
        given = [units[order[at]] if asked else replace(units[order[at]], relevance=None) for at in members]
        selections = one(given, [keeps[at] for at in members])
        if ordered:
            selections = _ranked(one, given, selections)
        chosen |= {order[at]: s for at, s in zip(members, selections)}
    return [chosen[i] for i in range(len(units))]


def _ranked(method: Method, units: Sequence[VisualTokens], selections: list[Selection]) -> list[Selection]:
    """Pictures that fit their budget whole, with the order in which the method would have chosen their tokens."""
    whole = [i for i, s in enumerate(selections) if s.kept == s.total > 1]
    if not whole:
        return selections
    out = list(selections)
    for i, almost in zip(whole, method([units[i] for i in whole], [units[i].count - 1 for i in whole])):
        rank = torch.full_like(out[i].order, almost.total)  # the one that was not chosen comes last
        rank[almost.rows] = almost.order
        out[i] = replace(out[i], order=rank)
    return out
