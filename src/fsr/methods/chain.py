"""Composition: one method before the language model, then some inside: `FSR(keep=128) | FastV(layer=16, keep=32)`."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fsr.errors import UsageError
from fsr.methods.base import Method, Picks
from fsr.methods.in_llm import InsideMethod
from fsr.tokens import Selection, VisualTokens

__all__ = ["Chain", "Whole", "join", "split"]


@dataclass(frozen=True)
class Chain:
    """What `|` gives: `outside` prunes the prompt (None: nothing does), then `inside` drop tokens at their layers."""

    where: ClassVar[str] = "before and inside the language model"

    outside: Method | None
    inside: tuple[InsideMethod, ...]

    @property
    def name(self) -> str:
        """All names in order."""
        return " | ".join(m.name for m in (self.outside, *self.inside) if m is not None)

    def __or__(self, other: Any) -> Chain:
        return join(self, other)


@dataclass(frozen=True)
class Whole(Method):
    """Keeps every token: what stands in front of the language model when only methods inside it prune."""

    name = "whole"
    paper = "none"

    keep: int | float = 1.0

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """Never reached with keep = 1.0; a smaller budget is not this method's business."""
        raise UsageError("'whole' keeps every token: choose a method that prunes.")

    def _whole(self, tokens: VisualTokens) -> Selection:
        """Without the note that nothing was pruned: something will be, later."""
        return replace(super()._whole(tokens), notes=())


def join(left: Any, right: Any) -> Chain:
    """`left | right`.

    Raises:
        UsageError: an order or a pair that makes no sense; the message says why.
    """
    if not isinstance(right, InsideMethod | Method):
        raise UsageError(f"{right!r} is no pruning method: chain methods with |, one after another.")
    outside, inside = split(left)
    if isinstance(right, Method):
        if inside:
            raise UsageError(
                f"{right.name} prunes before the language model and {inside[-1].name} inside it, which is later: write "
                f"{right.name} | {inside[-1].name}."
            )
        raise UsageError(
            f"{outside.name if outside else left} and {right.name} both prune before the language model: the second "
            "would score tokens that the first has picked or merged already. Use one of them, or compare them."
        )
    before = inside[-1] if inside else outside
    if before is not None and _number(right.keep, first=True) > _number(before.keep, first=False):
        raise UsageError(
            f"{right.name} keeps {right.keep} of the {before.keep} tokens that {before.name} leaves: dropped tokens do "
            "not come back, give it a smaller budget."
        )
    return Chain(outside, (*inside, right))


def split(method: Any) -> tuple[Method | None, tuple[InsideMethod, ...]]:
    """The part before and the part inside the language model.

    Raises:
        UsageError: not a method at all.
    """
    if isinstance(method, Chain):
        return method.outside, method.inside
    if isinstance(method, InsideMethod):
        return None, (method,)
    if isinstance(method, Method):
        return method, ()
    raise UsageError(f"{method!r} is no pruning method: give one, for example FSR(keep=64), or several chained with |.")


def _number(keep: Any, first: bool) -> float:
    """Tokens where `keep` counts them; a share never grows: 0 for the later method, infinity for the earlier one."""
    if isinstance(keep, tuple):
        keep = keep[0] if first else keep[-1]
    if isinstance(keep, numbers.Integral):
        return int(keep)
    return 0 if first else float("inf")
