"""A budget per picture: `keep` as a list (one value per picture, in prompt order) or as a function of the picture.

An agent's prompt holds many screenshots and asks about the newest; `by_age` gives each a budget by its age:

    FSR(keep=[0.5, 0.1, 32])          # three pictures in the prompt
    FSR(keep=by_age(newest=0.5, older=0.1, oldest=32))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fsr.errors import BudgetError, counted
from fsr.methods.budget import check_keep
from fsr.tokens import VisualTokens

__all__ = ["ByAge", "EachPrompt", "Keep", "KeepFor", "Shape", "by_age", "checked", "per_picture"]

Keep = int | float
# (number of the picture in its prompt from 0, pictures of that prompt, its tokens, rows and columns of its raster or
# None where it is no single raster) -> budget.
KeepFor = Callable[[int, int, int, tuple[int, int] | None], Keep]


@dataclass(frozen=True)
class ByAge:
    """Budgets by age, for prompts that grow by a picture a turn; see `by_age`."""

    newest: Keep
    older: Keep
    oldest: Keep
    recent: int

    def __call__(self, number: int, of: int, tokens: int, size: tuple[int, int] | None) -> Keep:
        if number == of - 1:
            return self.newest
        past = max(0, of - 2) // self.recent * self.recent
        return self.oldest if number < past else self.older


def by_age(newest: Keep = 0.5, older: Keep = 0.1, oldest: Keep = 32, recent: int = 8) -> ByAge:
    """The last picture of a prompt keeps `newest`, those shortly before it `older`, those long before it `oldest`.

    A picture that changes its budget changes the prompt behind it, and a KV cache of the earlier turn is of no use from
    there on. So the border between older and oldest moves in steps: at least one and at most `recent` pictures count as
    older, and in all but one of `recent` turns only the picture before the newest changes.

    Raises:
        BudgetError: a value that is no budget, or `recent` below 1.
    """
    for keep in (newest, older, oldest):
        check_keep(keep)
    if isinstance(recent, bool) or not isinstance(recent, int) or recent < 1:
        raise BudgetError(f"recent={recent!r}: give a number of pictures, at least 1.")
    return ByAge(newest, older, oldest, recent)


@dataclass(frozen=True)
class EachPrompt:
    """One value per picture of every prompt, for batches whose prompts are alike: picture i of each keeps values[i].

    Raises:
        BudgetError: fewer than two values, or one that is no budget; when called, a prompt with another number.
    """

    values: tuple[Keep, ...]

    def __post_init__(self) -> None:
        for value in self.values:
            check_keep(value)

    def __call__(self, number: int, of: int, tokens: int, size: tuple[int, int] | None) -> Keep:
        self.check(of)
        return self.values[number]

    def check(self, pictures: int) -> None:
        """Raise `BudgetError` for a prompt with another number of pictures."""
        if pictures != len(self.values):
            raise BudgetError(
                f"keep has {counted(len(self.values), 'value')} and the prompt {counted(pictures, 'picture')}: give "
                "one per picture in prompt order, or one for all."
            )

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


def checked(keep: Any) -> Any:
    """`keep` of a method, a list as a tuple.

    Raises:
        BudgetError: no budget, an empty list, or a list with something else in it.
    """
    if callable(keep):
        return keep
    if not isinstance(keep, list | tuple):
        check_keep(keep)
        return keep
    if not keep:
        raise BudgetError("keep=[] has no budget: give one value per picture, in prompt order.")
    for value in keep:
        check_keep(value)
    return tuple(keep)


@dataclass(frozen=True)
class Shape:
    """tokens: of a picture; size: rows and columns of its raster, None where it is no single raster."""

    tokens: int
    size: tuple[int, int] | None

    @staticmethod
    def of(tokens: VisualTokens) -> Shape:
        """Of a picture that the tower has seen."""
        return Shape(tokens.count, None if tokens.geometry is None else tokens.geometry.grid)


def per_picture(keep: Any, images: Sequence[Shape], prompts: Sequence[int]) -> list[Keep]:
    """The budget of every picture.

    Args:
        keep: a number, a tuple with one per picture, or a function (`KeepFor`).
        images: all pictures in prompt order; prompts: [same length], the prompt (batch row) that each stands in.

    Raises:
        BudgetError: a tuple of another length, or a function that fails or returns no budget.
    """
    if isinstance(keep, tuple):
        if len(keep) != len(images):
            raise BudgetError(
                f"keep has {counted(len(keep), 'value')} and the call has {counted(len(images), 'picture')}: give one "
                "per picture, in prompt order, or a function such as by_age(...)."
            )
        return list(keep)
    if not callable(keep):
        return [keep] * len(images)
    total, seen = Counter(prompts), Counter[int]()
    keeps = []
    for image, prompt in zip(images, prompts):
        keeps.append(_asked(keep, (seen[prompt], total[prompt], image.tokens, image.size)))
        seen[prompt] += 1
    return keeps


def _asked(keep: KeepFor, given: tuple[int, int, int, tuple[int, int] | None]) -> Keep:
    name = getattr(keep, "__name__", type(keep).__name__)
    where = f"keep={name}(number={given[0]}, of={given[1]}, tokens={given[2]}, size={given[3]})"
    try:
        value = keep(*given)
    except BudgetError:
        raise
    except Exception as error:
        raise BudgetError(f"{where} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    try:
        check_keep(value)
    except BudgetError as error:
        raise BudgetError(f"{where} returned {value!r}, which is no budget: {error}") from error
    return value
