"""Composition with `|`: one method before the language model, then some inside it: `FSR(keep=128) | FastV(layer=16,
keep=32)`.

Both kinds of method inherit `|` from here, so this module knows neither; `fsr.methods.parts` takes a chain apart again.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any, ClassVar

from fsr.errors import UsageError

__all__ = ["BEFORE_LLM", "BEFORE_TOWER", "IN_LLM", "Chain", "Chainable"]

BEFORE_TOWER = "before the vision tower"
BEFORE_LLM = "before the language model"
IN_LLM = "inside the language model"


class Chainable:
    """What `|` joins. where: `BEFORE_TOWER`, `BEFORE_LLM` or `IN_LLM`."""

    name: ClassVar[str] = ""
    where: ClassVar[str] = ""

    def __or__(self, other: Any) -> Chain:
        """`self`, then `other`, which must prune inside the language model.

        Raises:
            UsageError: an order or a pair that makes no sense; the message says why.
        """
        if self.where == BEFORE_TOWER:
            return _behind_downscale(self, other)
        return _join(None if self.where == IN_LLM else self, (self,) if self.where == IN_LLM else (), other)


@dataclass(frozen=True)
class Chain:
    """What `|` gives: `downscale` (or None) makes the pictures smaller, `before_llm` (or None) shortens the prompt,
    then `in_llm` drop tokens at their layers."""

    where: ClassVar[str] = "before and inside the language model"

    before_llm: Any
    in_llm: tuple[Any, ...]
    downscale: Any = None

    @property
    def name(self) -> str:
        """All names in order."""
        return " | ".join(m.name for m in (self.downscale, self.before_llm, *self.in_llm) if m is not None)

    def __or__(self, other: Any) -> Chain:
        return _join(self.before_llm, self.in_llm, other, self.downscale)


def _behind_downscale(downscale: Any, right: Any) -> Chain:
    if isinstance(right, Chain) and right.downscale is None:
        return Chain(right.before_llm, right.in_llm, downscale)
    if not isinstance(right, Chainable) or right.where == BEFORE_TOWER:
        raise UsageError(f"{right!r} is no pruning method: write {downscale.name} | FSR(keep=...).")
    return Chain(None, (right,), downscale) if right.where == IN_LLM else Chain(right, (), downscale)


def _join(before_llm: Any, in_llm: tuple[Any, ...], right: Any, downscale: Any = None) -> Chain:
    if not isinstance(right, Chainable):
        raise UsageError(f"{right!r} is no pruning method: chain methods with |, one after another.")
    if right.where == BEFORE_TOWER:
        raise UsageError(f"{right.name} works before the vision tower: write {right.name} | FSR(keep=...).")
    last = in_llm[-1] if in_llm else before_llm
    if right.where != IN_LLM:
        if in_llm:
            raise UsageError(
                f"{right.name} prunes before the language model and {last.name} inside it, which is later: write "
                f"{right.name} | {last.name}."
            )
        raise UsageError(
            f"{last.name} and {right.name} both prune before the language model: the second would score tokens that "
            "the first has picked or merged already. Use one of them, or compare them."
        )
    keep: Any = getattr(right, "keep")  # noqa: B009  (a dataclass field of every method)
    if _number(keep, first=True) > _number(last.keep, first=False):
        raise UsageError(
            f"{right.name} keeps {keep} of the {last.keep} tokens that {last.name} leaves: dropped tokens do not come "
            "back, give it a smaller budget."
        )
    return Chain(before_llm, (*in_llm, right), downscale)


def _number(keep: Any, first: bool) -> float:
    """Tokens where `keep` counts them; a share never grows: 0 for the later method, infinity for the earlier one. Of
    several values (one per drop, or one per picture) the largest counts, and of the later method the first."""
    if isinstance(keep, tuple):
        return _number(keep[0], first) if first else max(_number(k, first) for k in keep)
    if isinstance(keep, numbers.Integral):
        return int(keep)
    return 0 if first else float("inf")
