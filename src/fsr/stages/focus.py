"""Stage 1, Focus: the local evidence (Eq. 3 and 4 of arXiv 2602.05809)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fsr.kernels.reference import wide
from fsr.stages.ranking import ranked

__all__ = ["Focus", "FocusMass", "focus", "priority"]

FocusMass = Literal["all", "top_k"]


class Focus(NamedTuple):
    """The Focus set of B images.

    rows: long [B, K], the K_F focus tokens by falling priority, then -1 up to K.
    size: long [B], K_F.
    wanted: long [B], K_F before it was capped.
    """

    rows: Tensor
    size: Tensor
    wanted: Tensor


def priority(saliency: Tensor, relevance: Tensor | None, alpha: float, beta: float) -> Tensor:
    """Eq. 3: phi_i = r_i^alpha * s_i^beta, float32 [B, N], of scores in [0, 1]; without relevance alpha counts as 0."""
    phi = saliency.float() ** beta
    return phi if relevance is None else relevance.float() ** alpha * phi


def focus(phi: Tensor, k: int, rho: float = 0.9, mass: FocusMass = "all", max_focus: float = 1.0) -> Focus:
    """Eq. 4: the shortest prefix of the tokens by falling priority that holds the share `rho` of the priority mass.

    Where that prefix is longer than the budget (the paper says nothing) it is cut at max(1, floor(max_focus * K)).
    Without any priority mass Focus is empty. Ties go to the lowest index. Shapes do not depend on K_F, and nothing
    waits for the device.

    Args:
        phi: float32 [B, N], not negative.
        k: the budget K <= N.
        rho: share of the mass in (0, 1].
        mass: of all N tokens ('all', the paper) or of the K with the highest priority ('top_k').
        max_focus: largest share of K that Focus may take, in [0, 1]; 0 is no Focus at all.
    """
    values, order = ranked(phi)
    held = values.to(wide(phi.device)).cumsum(dim=-1)
    total = held[:, -1:] if mass == "all" else held[:, k - 1 : k]
    # The first k whose mass reaches rho * Z is one more than the number of prefixes that do not.
    wanted = ((held < rho * total).sum(dim=-1) + 1) * (total[:, 0] > 0)
    # One token of evidence at least, or a budget of one would ignore the question.
    cap = min(k, max(1, math.floor(max_focus * k + 1e-9))) if max_focus > 0 else 0
    size = wanted.clamp(max=cap)
    step = torch.arange(k, device=phi.device)
    return Focus(torch.where(step < size[:, None], order[:, :k], -1), size, wanted)
