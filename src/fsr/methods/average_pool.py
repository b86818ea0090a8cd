"""Average pooling: the picture at a lower resolution, in exactly K tokens. The baseline of "why not shrink the image?"

A vision tower of fixed size takes no smaller picture (interpolated positions are off its training, and a picture of
48 pixels shows nothing), so the resolution is lowered after the projector: the tokens of `uniform-grid` are the
centres, every token joins the nearest centre of its crop and frame (Euclidean, between the middles of the boxes; ties
to the lower row), and each centre becomes the plain mean of its cell. For K = 16 of 12 x 12 these are the sixteen
3 x 3 blocks.
Without geometry, distance is counted along the sequence. Prunes after the projector; needs no signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fsr.methods.base import Picks, register
from fsr.methods.checks import in_range
from fsr.methods.quotas import crops
from fsr.methods.uniform_grid import UniformGrid
from fsr.tokens import Stage, VisualTokens

__all__ = ["AveragePool"]


@register
@dataclass(frozen=True)
class AveragePool(UniformGrid):
    """Means of the cells of a uniform grid. Options: those of `Method`."""

    name = "average-pool"
    paper = "none (baseline)"
    licence_note = "no outside code"

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        features = tokens.features
        b, n, width = features.shape
        device = features.device
        rows = super().pick(tokens, k).rows.sort(-1).values
        if tokens.geometry is None:
            place = torch.arange(n, device=device).float()[None, :, None].expand(b, n, 1)
        else:
            boxes = tokens.geometry.boxes.to(device).float()
            place = torch.stack([boxes[..., 0] + boxes[..., 2], boxes[..., 1] + boxes[..., 3]], dim=-1) / 2
        crop = crops(tokens.geometry, b, n, device)
        apart = torch.cdist(place, place.gather(1, rows[..., None].expand(-1, -1, place.shape[-1])))
        apart = apart.masked_fill(crop[:, :, None] != crop.gather(1, rows)[:, None], torch.inf)
        cell = apart.argmin(-1)  # [B, N], index of the centre
        lost = apart.isinf().all(-1)  # crops without any centre (more crops than tokens): left out
        share = (~lost).float()
        sizes = torch.zeros(b, k, device=device).scatter_add_(1, cell, share)
        # Divided before they are added: a sum of large values could leave float32.
        parts = features.float() * (share / sizes.gather(1, cell))[..., None]
        means = torch.zeros(b, k, width, device=device).scatter_add_(1, cell[..., None].expand(-1, -1, width), parts)
        target = torch.where(lost, -1, rows.gather(1, cell))
        own = torch.arange(n, device=device).expand(b, n)
        return Picks(
            rows=rows,
            stage=torch.full_like(rows, int(Stage.MERGED)),
            features=in_range(means, features),
            merged_into=torch.where(target == own, -1, target),
        )
