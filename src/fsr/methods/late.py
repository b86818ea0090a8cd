"""Late: a drop inside the language model that reads no attention. FSR has already said in which order tokens matter.

    FSR(keep=128) | Late({12: 64, 24: 0})     # 128 tokens enter, 64 are left from layer 12 on, none from layer 24 on

In front of each of these decoder layers the first K tokens stay in the order in which the method before the language
model chose them (FSR: Focus first, then Scan, in order of choice). Zero drops all visual tokens behind the last layer
that needs them: by then the text has read what it wanted (as FastV and later work observed; no source for this rule).

Prunes: at prefill, in front of each named layer. Needs: the order of a method before the language model; no scores, no
attention rows, so any attention implementation (flash included) will do, and what stays is known before the first
layer runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fsr.errors import BudgetError, UsageError, counted
from fsr.methods.budget import check_keep, count_of
from fsr.methods.in_llm import Choice, InLLMMethod, View
from fsr.methods.options import LAYER, check_options
from fsr.methods.picture_budgets import Keep

__all__ = ["Late"]


@dataclass(frozen=True)
class Late(InLLMMethod):
    """Drops by the order of choice before the language model.

    Args:
        keep: layer (0-based, at least 1) to tokens that stay from it on: a number (0: none), or a share of those that
            entered the language model. With `at` also one value per layer as a tuple, or one for the last (the steps
            between are geometric).
        at: the layers, where `keep` does not name them.

    Raises:
        UsageError: no layers, or layers named twice over. BudgetError: a value that is no budget.
    """

    name = "late"
    paper = "none (this library)"
    licence_note = "Apache-2.0"
    needs = frozenset()
    ordered = True

    keep: Keep | tuple[Keep, ...] | Mapping[int, Keep] = 0  # type: ignore[assignment]  # one value per layer, too
    at: tuple[Annotated[int, LAYER], ...] = ()

    def __post_init__(self) -> None:
        keep, at = self.keep, tuple(self.at)
        if isinstance(keep, list):
            keep = tuple(keep)
        if isinstance(keep, Mapping):
            if at:
                raise UsageError("late: name the layers in keep={layer: tokens} or in at=(...), not in both.")
            at, keep = tuple(keep), tuple(keep.values())
        if not isinstance(at, list | tuple) or not at:
            raise UsageError("late: name the layers, for example Late({12: 64, 24: 0}).")
        if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in at):
            raise UsageError(f"late: layers {at} must be whole numbers.")
        for value in keep if isinstance(keep, tuple) else (keep,):
            if isinstance(value, bool) or value != 0:
                check_keep(value)
        if isinstance(keep, tuple) and len(keep) != len(at):
            raise BudgetError(f"late: keep={keep} for {counted(len(at), 'layer')}: give one value per layer, or one.")
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "at", tuple(at))
        check_options(self)

    def drop_layers(self, depth: int) -> tuple[int, ...]:
        """`at`, whatever the depth."""
        return self.at

    def budgets(self, total: int, depth: int) -> tuple[int, ...]:
        """See `InLLMMethod.budgets`; zero stays zero."""
        self.layers(depth)
        if not isinstance(self.keep, tuple):
            if self.keep == 0:
                return (*super().budgets(total, depth)[:-1], 0) if len(self.at) > 1 else (0,)
            return super().budgets(total, depth)
        wanted = [0 if keep == 0 else count_of(keep, total) for keep in self.keep]
        return tuple(min(wanted[: i + 1]) for i in range(len(wanted)))

    def choose(self, view: View, k: int) -> Choice:
        """See `InLLMMethod.choose`."""
        if view.order is None:
            raise UsageError("late follows the order in which another method chose: write FSR(keep=...) | Late(...).")
        return Choice(view.order.argsort(stable=True)[:k])
