"""The one meaning of a budget, and the certificate of what it covers."""

from __future__ import annotations

import math
import numbers

from fsr.errors import BudgetError
from fsr.tokens import Certificate

__all__ = ["certify", "check_keep"]


def check_keep(keep: int | float) -> None:
    """Raise `BudgetError` unless `keep` is a positive whole number of tokens or a share in (0, 1]."""
    if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
        raise BudgetError(f"keep={keep!r} is not a number: give tokens (64) or a share (0.11).")
    if isinstance(keep, numbers.Integral):
        if keep < 1:
            raise BudgetError(f"keep={keep} keeps nothing: give at least 1 token, or a share between 0 and 1.")
    elif not (0.0 < float(keep) <= 1.0):
        raise BudgetError(f"keep={keep} is no share: give 0 < keep <= 1, or a whole number of tokens.")


def certify(radius_cos: float) -> Certificate:
    """The coverage certificate of a 1 - cos covering radius (see `Certificate` for why the two factors differ)."""
    radius_cos = max(0.0, radius_cos)
    chord = math.sqrt(2.0 * radius_cos)
    return Certificate(radius_cos, chord, chord / 2.0)
