"""Uniform grid: K tokens spread evenly over the picture, blind to its content.

For a raster of H x W tokens: r = round(sqrt(K H / W)) rows, brought into [ceil(K / W), H], at heights floor((i +
1/2) H / r); K is split over these rows as evenly as whole numbers allow, and a row with c tokens takes columns
floor((j + 1/2) W / c). Since r <= H and c <= W all K tokens are distinct. Several crops or frames share K in
proportion to their tokens. Where a crop is no full raster (cut padding, bare tensors without geometry) its tokens
are taken at even steps of the sequence: floor((i + 1/2) n / k). Prunes after the projector; needs no signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.methods.base import Method, Picks, register
from fsr.methods.quotas import apportion, crops
from fsr.tokens import Stage, VisualTokens

__all__ = ["UniformGrid", "even", "lattice"]


def even(n: int, k: int) -> Tensor:
    """k distinct numbers below n at even steps. Long [k]; k <= n."""
    return (2 * torch.arange(k) + 1) * n // (2 * k)


def lattice(height: int, width: int, k: int) -> Tensor:
    """k distinct rows of a height x width raster, evenly spread in both directions. Long [k], rising."""
    r = round(math.sqrt(k * height / width))
    r = min(max(r, math.ceil(k / width), 1), height, k)
    per_row = torch.diff(torch.arange(r + 1) * k // r)
    lines = even(height, r)
    return torch.cat([y * width + even(width, int(c)) for y, c in zip(lines, per_row)])


def _shape(boxes: Tensor) -> tuple[int, int] | None:
    """(H, W) if boxes [n, 4] are a full raster, row by row; else None."""
    rows, y = boxes[:, 1].unique(return_inverse=True)
    cols, x = boxes[:, 0].unique(return_inverse=True)
    h, w = len(rows), len(cols)
    if h * w != len(boxes) or not bool((y * w + x == torch.arange(h * w, device=y.device)).all()):
        return None
    return h, w


@register
@dataclass(frozen=True)
class UniformGrid(Method):
    """Tokens at even distances. Options: those of `Method`."""

    name = "uniform-grid"
    paper = "none (baseline)"
    licence_note = "no outside code"

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        b, n, _ = tokens.features.shape
        device = tokens.features.device
        crop = crops(tokens.geometry, b, n, device)
        chosen = []
        for i in range(b):
            size = crop[i].bincount()
            parts = []
            for c, quota in enumerate(apportion(size[None].float(), k, size)[0].tolist()):
                members = (crop[i] == c).nonzero()[:, 0]
                shape = None if tokens.geometry is None else _shape(tokens.geometry.boxes[i].to(device)[members])
                if quota:
                    spread = even(len(members), quota) if shape is None else lattice(*shape, quota)
                    parts.append(members[spread.to(device)])
            chosen.append(torch.cat(parts))
        rows = torch.stack(chosen)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.SCAN)))
