"""Budgets, methods and their options as people write them: `64`, `11%`, `fsr,divprune`, `alpha=2`."""

from __future__ import annotations

from typing import Any

from fsr.errors import BudgetError, UsageError
from fsr.methods import Method, available, get
from fsr.methods.options import option_value
from fsr.methods.registry import full_name

__all__ = ["build_method", "keep_per_picture", "keep_value", "keep_values", "method_names"]


def keep_value(text: str) -> int | float:
    """`64` is a number of tokens, `0.11` or `11%` a share.

    Raises:
        BudgetError: neither.
    """
    text = text.strip()
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise BudgetError(f"--keep {text!r} is no number: give tokens (16) or a share (0.11).") from error


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


def method_names(text: str) -> list[str]:
    """Method names separated by commas; `all` is every method that prunes before the language model or inside it."""
    if text.strip() == "all":
        return list(available())
    names = [full_name(part.strip().lower()) for part in text.split(",") if part.strip()]
    for name in names:
        if name not in available():
            raise UsageError(f"unknown method {name!r}: choose from {', '.join(available())}.")
    return names


def build_method(name: str, keep: Any, options: list[str] | None = None) -> Any:
    """A method from its name, budget (see `Method.keep`) and `name=value` options (see `option_value`).

    Raises:
        BudgetError: budgets per picture for a method inside the language model. UsageError: an unknown name or option.
    """
    name = full_name(name.lower())
    values: dict[str, Any] = {}
    for item in options or []:
        key, sign, value = item.partition("=")
        if not sign:
            raise UsageError(f"--option {item!r}: write name=value, for example --option alpha=2.")
        if key.strip() == "keep":
            raise UsageError("--option keep=...: the budget is given by --keep.")
        values[key.strip()] = option_value(value)
    plain = isinstance(keep, int | float)
    if not plain and name in available() and not issubclass(available()[name], Method):
        raise BudgetError(f"{name} drops inside the language model, with one budget for all pictures: give one --keep.")
    return get(name, keep=keep, **values)
