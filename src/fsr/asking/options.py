"""Budgets, methods and their options as people write them: `64`, `11%`, `fsr,divprune`, `alpha=2`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fsr.errors import BudgetError, UsageError
from fsr.methods import Method, available, get
from fsr.methods.options import option_value
from fsr.methods.registry import full_name, unknown_method

__all__ = [
    "build_method",
    "keep_per_picture",
    "keep_value",
    "keep_values",
    "method_labels",
    "method_names",
    "method_options",
]


def keep_value(text: str) -> int | float:
    """`64` is a number of tokens, `0.11` or `11%` a share.

    Raises:
        BudgetError: neither.
    """
    text = text.strip()
    try:
        if "_" in text or "e" in text.lower():  # 1_000 and 1e3 are numbers to Python, and to nobody else
            raise ValueError
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise BudgetError(
            f"--keep {text[:60]!r} is no number of tokens and no share: write a whole number in plain digits (64), or "
            "a share (0.11 or 11%)."
        ) from error


def keep_values(text: str) -> list[int | float]:
    """Several budgets, separated by commas."""
    return [keep_value(part.strip()) for part in text.split(",") if part.strip()]


def keep_per_picture(text: str) -> int | float | list[int | float]:
    """One budget for all pictures, or several separated by commas: one per picture in prompt order.

    Raises:
        BudgetError: something between the commas is no number.
    """
    parts = text.split(",")
    return [keep_value(part) for part in parts] if len(parts) > 1 else keep_value(text)


def method_labels(text: str) -> list[str]:
    """What people write for several methods, apart: `fsr:alpha=0,fastv` is two. Commas inside brackets belong to an
    option (`pyramiddrop:at=[2, 4]`)."""
    parts = (part.strip() for part in re.split(r",(?![^\[\]]*\])", text))
    heads = (part.partition(":") for part in parts if part)
    return [f"{name.strip().lower()}{sign}{settings}" for name, sign, settings in heads]


def method_names(text: str) -> list[str]:
    """Methods separated by commas, each with its options behind colons, under their full names; `all` among them is
    every method that prunes before the language model or inside it.

    Raises:
        UsageError: an unknown name, or none.
    """
    names: list[str] = []
    for label in method_labels(text):
        name, sign, settings = label.partition(":")
        if label == "all":
            names += available()
            continue
        if full_name(name) not in available():
            raise unknown_method(label if "|" in label else name, available())
        names.append(f"{full_name(name)}{sign}{settings}")
    if not names:
        raise UsageError(f"--methods {text!r} names no method: choose from {', '.join(available())}.")
    return list(dict.fromkeys(names))


def method_options(
    settings: Sequence[str], wanted: str = "method:name=value, for example fsr:rho=0.5"
) -> dict[str, Any]:
    """Options of a method from `name=value` pairs, see `option_value`. wanted: how they are written, for the message.

    Raises:
        UsageError: no such pair, the budget, or one option twice.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        key = key.strip()
        if not sign:
            raise UsageError(f"{setting!r} is no option: write {wanted}.")
        if key == "keep":
            raise UsageError(f"{setting!r} is no option: the budget is given by --keep.")
        if key in found:
            raise UsageError(f"the option {key} is given twice: give it once.")
        found[key] = option_value(value)
    return found


def build_method(name: str, keep: Any, options: Sequence[str] | None = None) -> Any:
    """A method from its name, budget (see `Method.keep`) and `name=value` options, which may also stand behind the
    name: `fsr:alpha=0:per=tile`.

    Raises:
        BudgetError: budgets per picture for a method inside the language model. UsageError: an unknown name or option.
    """
    plain, *settings = [name] if "|" in name else name.split(":")
    plain = full_name(plain.strip().lower())
    values = method_options([*settings, *(options or [])], "name=value, for example --option alpha=2 or fsr:alpha=2")
    one = isinstance(keep, int | float)
    if not one and plain in available() and not issubclass(available()[plain], Method):
        raise BudgetError(
            f"{plain} drops inside the language model, with one budget for all pictures: give one --keep."
        )
    return get(plain, keep=keep, **values)
