"""Colours of all pictures: Okabe and Ito's palette, which people without red-green vision tell apart, and a line style
each, so that colour is never the only difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["HEAT", "INKS", "Ink", "Role", "rgb"]

Role = Literal["focus", "scan", "merged", "whole", "absorbed", "dropped", "structural"]


@dataclass(frozen=True)
class Ink:
    """How one role is drawn. color: "#rrggbb"; weight: share of the thickest line; label: for legends."""

    color: str
    line: Literal["solid", "dashed", "dotted"]
    weight: float
    label: str


INKS: dict[Role, Ink] = {
    "focus": Ink("#d55e00", "solid", 1.0, "Focus"),
    "scan": Ink("#0072b2", "dashed", 1.0, "Scan"),
    "merged": Ink("#009e73", "dotted", 1.0, "made of others"),
    "absorbed": Ink("#ffffff", "dotted", 0.35, "absorbed"),
}


def rgb(color: str) -> tuple[int, int, int]:
    """("#rrggbb") as three numbers from 0 to 255."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _between(stops: tuple[str, ...], count: int) -> tuple[str, ...]:
    colors = []
    for i in range(count):
        at = i * (len(stops) - 1) / (count - 1)
        low = min(int(at), len(stops) - 2)
        a, b = rgb(stops[low]), rgb(stops[low + 1])
        mixed = [round(x + (at - low) * (y - x)) for x, y in zip(a, b)]
        colors.append(f"#{mixed[0]:02x}{mixed[1]:02x}{mixed[2]:02x}")
    return tuple(colors)


# Dark blue to yellow, even steps of lightness, the same to all kinds of colour vision (after cividis, CC0).
HEAT = _between(("#00224e", "#31446b", "#575d6d", "#7d7c78", "#a59c74", "#d3c164", "#fee838"), 24)
