"""Errors a user can act on. Every message ends with what to do about it."""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "FSRError",
    "FeatureError",
    "PictureError",
    "QuestionError",
    "RelevanceError",
    "UnsupportedModelError",
    "UsageError",
]


class FSRError(ValueError):
    """Base of all errors that this library raises on purpose."""


class BudgetError(FSRError):
    """`keep` is neither a positive number of tokens nor a share in (0, 1]."""


class FeatureError(FSRError):
    """Features or scores that cannot be selected from (NaN, wrong shape)."""


class QuestionError(FSRError):
    """The method needs the question and none was given or found in the prompt, or the processor cannot take it."""


class RelevanceError(FSRError):
    """The method needs relevance and this model has no paired text tower (or the wrong one was given)."""


class UnsupportedModelError(FSRError):
    """No adapter knows this model, or its Transformers release is too old."""


class UsageError(FSRError):
    """A combination of arguments that makes no sense; the message says which."""


class PictureError(UsageError):
    """A picture that cannot be opened, or that this model's processor cannot take; another one may do."""


def counted(n: int, thing: str) -> str:
    """A number and what it counts, for messages: `1 picture`, `2 pictures`."""
    return f"{n} {thing}{'s' * (n != 1)}"
