"""Stage 1, Focus: the local evidence (Eq. 3 of arXiv 2602.05809), by the paper's prefix (Eq. 4), by distinct tokens or
by volume.

Why not always the prefix: neighbouring patches of one object have much the same feature and much the same priority, so
90 % of the mass is often a handful of things, each of them many times. Distinct Focus counts a token only as far as no
chosen one is like it; volume as far as the chosen ones together do not explain it.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fsr.kernels import dpp_map, heaviest_tokens
from fsr.kernels.reference import wide
from fsr.stages.ranking import ranked

__all__ = ["Focus", "FocusBy", "FocusMass", "distinct_focus", "focus", "priority", "volume_focus"]

FocusBy = Literal["volume", "distinct", "prefix"]
FocusMass = Literal["all", "top_k"]
# What rounding may leave of a mass that is covered altogether, as a share of it.
_ROUNDING = 1e-6


class Focus(NamedTuple):
    """The Focus set of B images.

    rows: long [B, K], the K_F focus tokens in the order of choice, then -1 up to K.
    size: long [B], K_F.
    wanted: long [B], K_F before it was capped, where that is known.
    similarity: float32 [B, N, N] or None, the cosines of all pairs where Focus made them: Scan needs them again.
    """

    rows: Tensor
    size: Tensor
    wanted: Tensor
    similarity: Tensor | None = None


def priority(saliency: Tensor, relevance: Tensor | None, alpha: float, beta: float) -> Tensor:
    """Eq. 3: phi_i = r_i^alpha * s_i^beta, float32 [B, N], of scores in [0, 1]; without relevance alpha counts as 0."""
    phi = saliency.float() ** beta
    return phi if relevance is None else relevance.float() ** alpha * phi


def focus(phi: Tensor, k: int, rho: float = 0.9, mass: FocusMass = "all", max_focus: float = 1.0) -> Focus:
    """Eq. 4: the shortest prefix of the tokens by falling priority that holds the share `rho` of the priority mass.

    Where that prefix is longer than the budget (the paper says nothing) it is cut at max(1, floor(max_focus * K)).
    Without any priority mass Focus is empty. Ties go to the lowest index. Shapes do not depend on K_F, and nothing
    synchronises with the device.

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
    size = wanted.clamp(max=_cap(k, max_focus))
    step = torch.arange(k, device=phi.device)
    return Focus(torch.where(step < size[:, None], order[:, :k], -1), size, wanted)


def distinct_focus(phi: Tensor, units: Tensor, k: int, rho: float = 0.9, max_focus: float = 1.0) -> Focus:
    """Again and again the token with the most uncovered priority, until the share `rho` of the mass is covered.

    A token i of priority phi_i is covered by a chosen token j as far as they are alike: what is uncovered of it is
    phi_i * min over chosen j of (1 - cos(v_i, v_j)), cut to [0, 1]. This is Scan's farthest-point rule (Eq. 5) weighted
    with Eq. 3, and Eq. 4's stopping rule on what is uncovered. Equal tokens count once; among tokens that have nothing
    in common it is `focus`.

    Args, caps and ties as in `focus`; units: float32 [B, N, D], `directions` of the tokens. `Focus.wanted` is K_F: how
    many more a cap has cut off is not known.
    """
    cap = _cap(k, max_focus)
    if cap == 0:
        none = phi.new_zeros(len(phi), dtype=torch.long)
        return Focus(none[:, None].expand(-1, k) - 1, none, none)
    rows, similarity = heaviest_tokens(units, phi, cap, 1 - rho + _ROUNDING)
    rows = torch.nn.functional.pad(rows, (0, k - cap), value=-1)
    size = (rows >= 0).sum(dim=-1)
    return Focus(rows, size, size, similarity)


def volume_focus(phi: Tensor, similarity: Tensor, k: int, max_focus: float = 1.0) -> Focus:
    """The tokens that together span the largest volume, each stretched by its priority: greedy maximum of
    det(diag(phi) C diag(phi)) over the chosen ones, C the cosines.

    Each step takes argmax phi_i^2 * (what of v_i the chosen ones leave unexplained), the squared distance of its
    direction to their span. Unlike `distinct_focus` this sees that two tokens together can explain a third. Focus takes
    max(1, ceil(max_focus * K)) tokens, none for max_focus = 0.

    phi: float32 [B, N], not negative; similarity: float32 [B, N, N].
    """
    size = min(k, max(1, math.ceil(max_focus * k - 1e-9))) if max_focus > 0 else 0
    rows = phi.new_full((len(phi), k), -1, dtype=torch.long)
    if size:
        rows[:, :size] = dpp_map(similarity, phi, size)
    sizes = rows.new_full((len(phi),), size)
    return Focus(rows, sizes, sizes, similarity)


def _cap(k: int, max_focus: float) -> int:
    """The most tokens that Focus may take; one of evidence at least, or a budget of one would ignore the question."""
    return min(k, max(1, math.floor(max_focus * k + 1e-9))) if max_focus > 0 else 0
