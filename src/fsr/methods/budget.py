"""The one meaning of a budget, and the certificate of what it covers."""

from __future__ import annotations

import math
import numbers
from typing import Any

from fsr.errors import BudgetError
from fsr.tokens import Certificate

__all__ = ["certify", "check_keep", "count_of"]


def check_keep(keep: int | float) -> None:
    """Raise `BudgetError` unless `keep` is a positive whole number of tokens or a share in (0, 1]."""
    if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
        raise BudgetError(f"keep={keep!r} is not a number: give tokens (64) or a share (0.11).")
    if isinstance(keep, numbers.Integral):
        if keep < 1:
            raise BudgetError(f"keep={keep} keeps nothing: give at least 1 token, or a share between 0 and 1.")
    elif not (0.0 < float(keep) <= 1.0):
        raise BudgetError(f"keep={keep} is no share: give 0 < keep <= 1, or a whole number of tokens.")


def count_of(keep: Any, total: int) -> int:
    """Tokens to keep of `total`: never more than there are, never fewer than one.

    Raises:
        BudgetError: a budget per picture (list or function) where a single one is needed.
    """
    if not isinstance(keep, numbers.Real):
        raise BudgetError("a budget per picture says nothing about one picture alone: give a single keep here.")
    k = int(keep) if isinstance(keep, numbers.Integral) else round(float(keep) * total)
    return max(1, min(k, total))


def certify(radius_cos: float) -> Certificate:
    """The coverage certificate of a 1 - cos covering radius (see `Certificate` for why the two factors differ)."""
    radius_cos = max(0.0, radius_cos)
    chord = math.sqrt(2.0 * radius_cos)
    return Certificate(radius_cos, chord, chord / 2.0)
