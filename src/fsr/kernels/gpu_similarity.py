"""Directions and their cosines on CUDA: a launch for all tokens, a matrix product per image, a launch to settle them.

Products stay torch's, in float32 and one image at a time, so that no batch neighbour can change a bit; every token of
`directions` is a program of its own, for the same reason.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsr.kernels.similarity import DUPLICATE

__all__ = ["cosines_of", "directions"]

_COLUMNS, _SETTLED = 1024, 1024


def directions(features: Tensor) -> Tensor:
    """See `fsr.kernels.directions`."""
    batch, n, width = features.shape
    units = torch.empty(batch, n, width, device=features.device)
    with torch.cuda.device_of(features):
        _directions[(batch * n,)](features.detach().contiguous(), units, width, COLUMNS=_COLUMNS)
    return units


def cosines_of(units: Tensor) -> Tensor:
    """See `fsr.kernels.similarity.cosines_of`."""
    batch, n, _ = units.shape
    out = units.new_empty(batch, n, n)
    with torch.no_grad(), torch.autocast(units.device.type, enabled=False):
        for image, cosines in zip(units, out):
            torch.mm(image, image.T, out=cosines)
    with torch.cuda.device_of(units):
        _settle[(triton.cdiv(out.numel(), _SETTLED),)](out, out.numel(), 1 - DUPLICATE, BLOCK=_SETTLED)
    return out


@triton.jit
def _directions(features, units, width, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    features += token * width
    units += token * width
    column = tl.arange(0, COLUMNS)
    squares = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        x = tl.load(features + start + column, mask=start + column < width, other=0.0).to(tl.float32)
        squares += x * x
    # As torch.nn.functional.normalize: a zero vector stays zero.
    length = tl.maximum(tl.sqrt_rn(tl.sum(squares, 0)), 1e-12)
    for start in range(0, width, COLUMNS):
        x = tl.load(features + start + column, mask=start + column < width, other=0.0).to(tl.float32)
        tl.store(units + start + column, tl.div_rn(x, length), mask=start + column < width)


@triton.jit
def _settle(cosines, count, same: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(cosines + at, mask=at < count, other=0.0)
    tl.store(cosines + at, tl.where(x > same, 1.0, tl.maximum(x, -1.0)), mask=at < count)
