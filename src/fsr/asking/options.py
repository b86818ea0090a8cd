"""Budgets, methods and their options as people write them: `64`, `11%`, `fsr,divprune`, `alpha=2`."""

from __future__ import annotations

from typing import Any

from fsr.errors import BudgetError, UsageError
from fsr.methods import available, get
from fsr.methods.options import option_value

__all__ = ["build_method", "keep_value", "keep_values", "method_names"]


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


def method_names(text: str) -> list[str]:
    """Method names separated by commas; `all` is every method that prunes before the language model or inside it."""
    if text.strip() == "all":
        return list(available())
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in available():
            raise UsageError(f"unknown method {name!r}: choose from {', '.join(available())}.")
    return names


def build_method(name: str, keep: int | float, options: list[str] | None = None) -> Any:
    """A method from its name, budget and `name=value` options (see `option_value`)."""
    values: dict[str, Any] = {}
    for item in options or []:
        key, sign, value = item.partition("=")
        if not sign:
            raise UsageError(f"--option {item!r}: write name=value, for example --option alpha=2.")
        if key.strip() == "keep":
            raise UsageError("--option keep=...: the budget is given by --keep.")
        values[key.strip()] = option_value(value)
    return get(name.lower(), keep=keep, **values)
