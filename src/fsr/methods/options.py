"""Types and ranges of options, for every method at once: read from the annotations of its dataclass.

    alpha: Annotated[float, Within(0, 100)] = 3.0

The same rules hold in Python, for `--option` and in `compare`: a value outside is one error, never another meaning.
"""

from __future__ import annotations

import json
import math
import numbers
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fsr.errors import UsageError

__all__ = ["EXPONENT", "LAYER", "SHARE", "Within", "check_options", "option_value"]


@dataclass(frozen=True)
class Within:
    """low <= value <= high; `above`: low < value; `below`: value < high."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        """True if the number lies inside."""
        low = self.low < value if self.above else self.low <= value
        return bool(low and (value < self.high if self.below else value <= self.high))

    def rule(self, name: str) -> str:
        """The same in words."""
        return f"{self.low:g} {'<' if self.above else '<='} {name} {'<' if self.below else '<='} {self.high:g}"


SHARE, EXPONENT, LAYER = Within(0, 1), Within(0, 100), Within(0, 10_000)
ANY = Within(-1e9, 1e9)  # where nothing is declared; beyond it, arithmetic and memory end


def option_value(text: str) -> Any:
    """A value as people write it: JSON, Python's True, False and None, else the text itself ("none" is a word: options
    such as relevance take it)."""
    words = {"true": True, "false": False, "none": None}
    plain = text.strip()
    if plain.lower() in words and plain != "none":
        return words[plain.lower()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, brackets without end
        return text


def check_options(method: Any) -> None:
    """Check all fields of a frozen method but `keep`, which has rules of its own; NumPy's numbers become Python's, and
    lists tuples.

    Raises:
        UsageError: a value of another type, or out of range.
    """
    hints = _hints(type(method))  # type: ignore[arg-type]  # a class is hashable
    for field in fields(method):
        if field.name == "keep":
            object.__setattr__(method, "keep", _plain(method.keep))
        elif field.name in hints:
            value = _checked(field.name, getattr(method, field.name), hints[field.name])
            object.__setattr__(method, field.name, value)


def _checked(name: str, value: Any, hint: Any, within: Within = ANY) -> Any:
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        within = next((e for e in extras if isinstance(e, Within)), within)
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType) and NoneType in parts:
        rest = [part for part in parts if part is not NoneType]
        return value if value is None or len(rest) > 1 else _checked(name, value, rest[0], within)
    if kind is Literal:
        if not any(type(value) is type(known) and value == known for known in parts):
            raise UsageError(f"{name}={_short(value)} is unknown: use one of {', '.join(map(repr, parts))}.")
        return value
    if kind is tuple and len(parts) == 2 and parts[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{name}={_short(value)} is no list: give several values, for example [2, 4].")
        return tuple(_checked(name, one, parts[0], within) for one in value)
    if hint is bool:
        if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
            raise UsageError(f"{name}={_short(value)} is neither true nor false: give one of these.")
        return bool(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not within.holds(value):
            raise UsageError(f"{name}={_short(value)} is out of range: give a whole number, {within.rule(name)}.")
        return int(value)
    if hint is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not within.holds(value) or not math.isfinite(value):
            raise UsageError(f"{name}={_short(value)} is out of range: give {within.rule(name)}.")
        return value if isinstance(value, int | float) else float(value)
    if hint is str and not isinstance(value, str):
        raise UsageError(f"{name}={_short(value)} is no text: give a word.")
    return value


def _plain(keep: Any) -> Any:
    if isinstance(keep, tuple):
        return tuple(map(_plain, keep))
    if isinstance(keep, int | float) or not isinstance(keep, numbers.Real):
        return keep
    return int(keep) if isinstance(keep, numbers.Integral) else float(keep)


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):  # a plug-in whose annotations cannot be read is left to itself
        return {}


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # numbers of thousands of digits
        return "a number without end"
    return text if len(text) <= 60 else text[:57] + "..."
