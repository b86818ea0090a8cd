"""Fewer pixels before the vision tower: the only stage that saves time in the tower itself.

    Downscale(pixels=400_000) | FSR(keep=128)

A family with native resolution turns a smaller picture into fewer tokens; what FSR then keeps is chosen from those.
Which processors can do it, and how, is `fsr.pipeline.resolution`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsr.errors import BudgetError
from fsr.methods.chain import BEFORE_TOWER, Chainable

__all__ = ["Downscale"]


@dataclass(frozen=True)
class Downscale(Chainable):
    """Pictures of at most so many pixels reach the vision tower; larger ones are scaled down by the model's processor.

    Args:
        pixels: height times width, at least 1.

    Raises:
        BudgetError: `pixels` is no positive whole number.
    """

    name = "downscale"
    where = BEFORE_TOWER

    pixels: int

    def __post_init__(self) -> None:
        if isinstance(self.pixels, bool) or not isinstance(self.pixels, int) or self.pixels < 1:
            raise BudgetError(f"Downscale(pixels={self.pixels!r}): give height times width as a positive whole number.")
