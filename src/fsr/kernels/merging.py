"""The two heavy steps of Refine (Eq. 8 and 9 of arXiv 2602.05809) in plain torch: which scan anchor a token is most
like, and the weighted means. Batched over images; means carry gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fsr.kernels.similarity import cosine_rows, matmul_each

__all__ = ["absorb", "nearest_anchor"]


def nearest_anchor(units: Tensor, similarity: Tensor | None, rows: Tensor, scanned: Tensor) -> tuple[Tensor, Tensor]:
    """See `fsr.kernels.nearest_anchor`."""
    # In raster order the first of several equal maxima is the anchor of lowest index.
    raster, position = rows.sort(dim=1)
    if similarity is None:
        likeness = cosine_rows(units, raster)
    else:
        likeness = similarity.gather(1, raster[..., None].expand(-1, -1, similarity.shape[2]))
    likeness = likeness.masked_fill(~scanned.gather(1, position)[..., None], -torch.inf)
    nearest, anchor = likeness.max(dim=1)
    return nearest.scatter(1, rows, -torch.inf), position.gather(1, anchor)


def absorb(features: Tensor, rows: Tensor, sources: Tensor, into: Tensor, weight: Tensor, own: Tensor) -> Tensor:
    """See `fsr.kernels.absorb`."""
    (batch, _, width), k, most = features.shape, rows.shape[1], sources.shape[1]
    kept = features.gather(1, rows[..., None].expand(-1, -1, width))
    gathered = weight.new_zeros(batch, k, most).scatter(1, into[:, None, :], weight[:, None, :])
    taken = gathered.sum(dim=2)
    total = torch.where(taken > 0, own + taken, 1.0)
    absorbed_mean = matmul_each(
        gathered / total[..., None], features.gather(1, sources[..., None].expand(-1, -1, width)).float()
    )
    mean = (own / total)[..., None] * kept.float() + absorbed_mean
    return torch.where((taken > 0)[..., None], mean.to(features.dtype), kept)
