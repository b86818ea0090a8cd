"""The two heavy steps of Refine as Triton kernels: two launches instead of three dozen.

Both give what `merging` defines, `nearest_anchor` to the index, the means up to the order of a sum. Where gradients
flow through the means, plain torch computes them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsr.kernels import merging
from fsr.kernels.gpu_similarity import cosines_of

__all__ = ["absorb", "nearest_anchor"]

# Anchors whose similarities are in flight at once, tokens per program, columns per program of the means.
_ANCHORS, _TOKENS, _COLUMNS = 16, 64, 256


def nearest_anchor(units: Tensor, similarity: Tensor | None, rows: Tensor, scanned: Tensor) -> tuple[Tensor, Tensor]:
    """See `fsr.kernels.nearest_anchor`."""
    if similarity is None:
        similarity = cosines_of(units)
    (batch, n, _), k = similarity.shape, rows.shape[1]
    nearest = similarity.new_empty(batch, n)
    into = torch.empty(batch, n, dtype=torch.long, device=similarity.device)
    with torch.cuda.device_of(similarity):
        _nearest_anchor[(batch, triton.cdiv(n, _TOKENS))](
            similarity.contiguous(),
            rows.contiguous(),
            scanned.to(torch.int8).contiguous(),
            nearest,
            into,
            n,
            k,
            ANCHORS=_ANCHORS,
            TOKENS=_TOKENS,
        )
    return nearest, into


def absorb(features: Tensor, rows: Tensor, sources: Tensor, into: Tensor, weight: Tensor, own: Tensor) -> Tensor:
    """See `fsr.kernels.absorb`."""
    if features.requires_grad and torch.is_grad_enabled():
        return merging.absorb(features, rows, sources, into, weight, own)
    (batch, n, width), k = features.shape, rows.shape[1]
    out = features.new_empty(batch, k, width)
    with torch.cuda.device_of(features):
        _absorb[(batch, k, triton.cdiv(width, _COLUMNS))](
            features.contiguous(),
            rows.contiguous(),
            sources.contiguous(),
            into.contiguous(),
            weight.contiguous(),
            own.contiguous(),
            out,
            n,
            k,
            sources.shape[1],
            width,
            COLUMNS=_COLUMNS,
        )
    return out


@triton.jit
def _nearest_anchor(similarity, rows, scanned, nearest, into, n, k, ANCHORS: tl.constexpr, TOKENS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    similarity += image * n * n
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    there = token < n
    best = tl.full([TOKENS], float("-inf"), tl.float32)
    lowest = tl.zeros([TOKENS], tl.int64) + n
    place = tl.zeros([TOKENS], tl.int64)
    kept = tl.zeros([TOKENS], tl.int32)
    for start in range(0, k, ANCHORS):
        j = start + tl.arange(0, ANCHORS)
        row = tl.load(rows + image * k + j, mask=j < k, other=n)
        anchor = tl.load(scanned + image * k + j, mask=j < k, other=0) != 0
        kept = tl.maximum(kept, tl.max((row[:, None] == token[None, :]).to(tl.int32), 0))
        at = similarity + row[:, None] * n + token[None, :]
        s = tl.load(at, mask=anchor[:, None] & there[None, :], other=float("-inf"))
        # Of equally similar anchors the one of lowest index, in whatever order they were chosen.
        most = tl.max(s, 0)
        first = tl.min(tl.where((s == most[None, :]) & anchor[:, None], row[:, None], n), 0)
        where = tl.max(tl.where(row[:, None] == first[None, :], j[:, None], 0), 0)
        better = (most > best) | ((most == best) & (first < lowest))
        best = tl.where(better, most, best)
        lowest = tl.where(better, first, lowest)
        place = tl.where(better, where, place)
    tl.store(nearest + image * n + token, tl.where(kept > 0, float("-inf"), best), mask=there)
    tl.store(into + image * n + token, place, mask=there)


@triton.jit
def _absorb(features, rows, sources, into, weight, own, out, n, k, most, width, COLUMNS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    anchor = tl.program_id(1)
    features += image * n * width
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < width
    kept = tl.load(features + tl.load(rows + image * k + anchor) * width + column, mask=here, other=0.0)
    total = tl.load(own + image * k + anchor)
    mean = total * kept.to(tl.float32)
    taken = total * 0
    for i in range(most):
        w = tl.load(weight + image * most + i)
        if (tl.load(into + image * most + i) == anchor) & (w > 0):
            token = tl.load(sources + image * most + i)
            mean += w * tl.load(features + token * width + column, mask=here, other=0.0).to(tl.float32)
            taken += w
    # Untouched anchors stay as they are, bit for bit.
    mean = mean / tl.where(taken > 0, total + taken, 1.0)
    merged = tl.where(taken > 0, mean.to(kept.dtype), kept)
    tl.store(out + (image * k + anchor) * width + column, merged, mask=here)
