"""Focus-Scan-Refine with the settings of its paper (arXiv 2602.05809), under a name of its own: for comparisons with
what is printed there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fsr.methods.base import register
from fsr.methods.fsr import FSR
from fsr.methods.options import EXPONENT, SHARE
from fsr.stages.focus import FocusBy

__all__ = ["PaperFSR"]


@register
@dataclass(frozen=True)
class PaperFSR(FSR):
    """`FSR` as the paper has it (arXiv 2602.05809): Focus is the shortest prefix by falling priority (Eq. 4), however
    much of the budget it takes.

    Args:
        focus_by, alpha, beta, max_focus: see `FSR`; only these defaults differ.
    """

    name: ClassVar[str] = "fsr-paper"

    focus_by: FocusBy = "prefix"
    alpha: Annotated[float, EXPONENT] = 3.0
    beta: Annotated[float, EXPONENT] = 1.0
    max_focus: Annotated[float, SHARE] = 1.0
