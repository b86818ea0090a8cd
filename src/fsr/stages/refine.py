"""Stage 3, Refine: aggregation without growing the budget (Eq. 8 and 9 of arXiv 2602.05809)."""

from __future__ import annotations

import torch
from torch import Tensor

from fsr.kernels import absorb, nearest_anchor
from fsr.stages.ranking import ranked

__all__ = ["refine"]


def refine(
    features: Tensor,
    units: Tensor,
    rows: Tensor,
    scanned: Tensor,
    phi: Tensor,
    kappa: float = 1.0,
    similarity: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Let scan anchors absorb the dropped tokens that are most like them; focus tokens stay as they are, bit for bit.

    Every dropped token goes to its most similar scan anchor (Eq. 8); of these assignments the floor(kappa * |S|) of
    highest similarity count; each anchor becomes the mean of itself and what it absorbs, weighted by priority (Eq. 9;
    applied one by one in any order it is this one mean). Where the absorbed weight is zero the anchor does not change.
    Ties go to the lowest index.

    Args:
        features: [B, N, D]; averaged in float32.
        units: float32 [B, N, E], `directions` behind the cosines of Eq. 8 (of these features or others).
        rows: long [B, K], the kept tokens in any order; scanned: bool [B, K], which of them are scan anchors.
        phi: float32 [B, N], priorities.
        kappa: absorbed tokens per anchor.
        similarity: [B, N, N], the cosines of `units`, where they are known already (see `Scan`).

    Returns:
        features [B, K, D] in the order of `rows` and the dtype of the input; long [B, N], the row that absorbed each
        token or -1.
    """
    batch, n, width = features.shape
    k = rows.shape[1]
    merged_into = torch.full((batch, n), -1, dtype=torch.long, device=features.device)
    most = min(int(kappa * k + 1e-6), n - k)
    if most == 0:
        return features.gather(1, rows[..., None].expand(-1, -1, width)), merged_into

    nearest, anchor = nearest_anchor(units, similarity, rows, scanned)
    sources = ranked(nearest)[1][:, :most]
    absorbed = (scanned.sum(dim=1, keepdim=True).float() * kappa + 1e-6).floor()
    counts = torch.arange(most, device=features.device) < absorbed
    into = anchor.gather(1, sources)
    merged_into = merged_into.scatter(1, sources, torch.where(counts, rows.gather(1, into), -1))
    weight = phi.gather(1, sources) * counts
    return absorb(features, rows, sources, into, weight, phi.gather(1, rows)), merged_into
