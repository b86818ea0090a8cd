"""The same selections on CUDA (and ROCm): Triton kernels on the same float32 similarities as the plain loops.

A plain loop costs half a dozen launches per step. Here farthest and heaviest points and DPP are one launch: a program
per image (or tile) walks through all steps, what it knows of the N tokens stays in registers, and only a row of
similarities (and, for DPP, the Cholesky rows so far) is read per step. Coverage reads all N x N similarities per step,
too much for one program: a grid of programs takes the gains, a second small launch takes the best.

Nothing synchronises with the host and no shape depends on data: the calls can be captured in a CUDA graph. N has no
limit of its own; from about 16,000 tokens the registers of one program no longer hold them, and they spill.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsr.kernels.gpu_refine import absorb, nearest_anchor
from fsr.kernels.gpu_similarity import cosines_of, directions
from fsr.kernels.reference import EXHAUSTED, Heaviest, Spread

__all__ = [
    "absorb",
    "coverage",
    "directions",
    "dpp_map",
    "dpp_tokens",
    "farthest_points",
    "farthest_tokens",
    "heaviest_points",
    "heaviest_tokens",
    "nearest_anchor",
]

# Float64 numbers of the Cholesky history that are in flight at once: latency, not arithmetic, is what a step costs.
_HISTORY = 8192
# Tokens and columns per program of the gains of coverage.
_TOKENS, _COLUMNS = 8, 256


def farthest_points(similarity: Tensor, preset: Tensor) -> Spread:
    """See `fsr.kernels.farthest_points`."""
    (batch, n, _), k = similarity.shape, preset.shape[1]
    order = torch.empty_like(preset, memory_format=torch.contiguous_format)
    radius = similarity.new_empty(batch, k)
    rest = similarity.new_empty(batch)
    with torch.cuda.device_of(similarity):
        _farthest_points[(batch,)](
            similarity.contiguous(), preset.contiguous(), order, radius, rest, n, k, **_one_program(n)
        )
    return Spread(order, radius, rest, similarity)


def farthest_tokens(units: Tensor, preset: Tensor) -> Spread:
    """See `fsr.kernels.farthest_tokens`. A matrix product is cheap where this runs."""
    return farthest_points(cosines_of(units), preset)


def heaviest_points(similarity: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """See `fsr.kernels.heaviest_points`."""
    batch, n, _ = similarity.shape
    rows = torch.empty(batch, k, dtype=torch.long, device=similarity.device)
    with torch.cuda.device_of(similarity):
        # `left` is compiled in: as an argument Triton would round it to float32.
        _heaviest_points[(batch,)](similarity.contiguous(), weight.contiguous(), rows, n, k, left, **_one_program(n))
    return Heaviest(rows, similarity)


def heaviest_tokens(units: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """See `fsr.kernels.heaviest_tokens`. A matrix product is cheap where this runs."""
    return heaviest_points(cosines_of(units), weight, k, left)


def dpp_map(similarity: Tensor, quality: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.dpp_map`."""
    batch, n, _ = similarity.shape
    q = quality.double().contiguous()
    order = torch.empty(batch, k, dtype=torch.long, device=similarity.device)
    factor = q.new_empty(batch, k, n)
    launch = _one_program(n)
    with torch.cuda.device_of(similarity):
        _dpp_map[(batch,)](
            similarity.contiguous(),
            q,
            factor,
            order,
            n,
            k,
            EXHAUSTED,
            ROWS=max(1, _HISTORY // launch["BLOCK"]),
            **launch,
        )
    return order


def dpp_tokens(units: Tensor, quality: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.dpp_tokens`."""
    return dpp_map(cosines_of(units), quality, k)


def coverage(similarity: Tensor, weight: Tensor, k: int) -> Tensor:
    """See `fsr.kernels.coverage`."""
    batch, n, _ = similarity.shape
    s, w = similarity.contiguous(), weight.double().contiguous()
    best, gain = s.new_zeros(batch, n), s.new_empty(batch, n)
    taken = torch.zeros(batch, n, dtype=torch.int8, device=s.device)
    order = torch.empty(batch, k, dtype=torch.long, device=s.device)
    launch = _one_program(n)
    with torch.cuda.device_of(similarity):
        for step in range(k):
            _gains[(batch, triton.cdiv(n, _TOKENS))](s, w, best, gain, n, TOKENS=_TOKENS, COLUMNS=_COLUMNS)
            _take_best[(batch,)](s, gain, best, taken, order, step, n, k, **launch)
    return order


def _one_program(n: int) -> dict[str, int]:
    block = triton.next_power_of_2(n)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 256))}


@triton.jit
def _farthest_points(similarity, preset, order, radius, rest, n, k, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    similarity += image * n * n
    column = tl.arange(0, BLOCK)
    here = column < n
    # Chosen tokens, and columns beyond N, are infinitely near: they are never the farthest.
    nearest = tl.where(here, -1.0, float("inf"))
    for step in range(k):
        least, lowest = tl.min(nearest, 0, return_indices=True, return_indices_tie_break_left=True)
        given = tl.load(preset + image * k + step)
        free = given < 0
        pick = tl.where(free, lowest.to(tl.int64), given)
        tl.store(order + image * k + step, pick)
        tl.store(radius + image * k + step, tl.where(free, 1 - least, float("nan")))
        row = tl.load(similarity + pick * n + column, mask=here, other=float("inf"))
        nearest = tl.where(column == pick, float("inf"), tl.maximum(nearest, row))
    tl.store(rest + image, tl.maximum(1 - tl.min(nearest, 0), 0.0))


@triton.jit
def _heaviest_points(similarity, weight, rows, n, k, left: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    similarity += image * n * n
    column = tl.arange(0, BLOCK)
    here = column < n
    w = tl.load(weight + image * n + column, mask=here, other=0.0)
    enough = left * tl.sum(w.to(tl.float64), 0)
    gap = tl.where(here, 1.0, 0.0)
    for step in range(k):
        uncovered = w * gap
        more = tl.sum(uncovered.to(tl.float64), 0) > enough
        pick = tl.argmax(uncovered, 0, tie_break_left=True).to(tl.int64)
        tl.store(rows + image * k + step, tl.where(more, pick, -1))
        row = tl.load(similarity + pick * n + column, mask=here, other=1.0)
        nearer = tl.minimum(gap, tl.minimum(tl.maximum(1 - row, 0.0), 1.0))
        gap = tl.where(column == pick, 0.0, nearer)


@triton.jit
def _dpp_map(
    similarity, quality, factor, order, n, k, exhausted: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    similarity += image * n * n
    factor += image * k * n
    column = tl.arange(0, BLOCK)
    here = column < n
    q = tl.load(quality + image * n + column, mask=here, other=0.0)
    own = tl.load(similarity + column.to(tl.int64) * (n + 1), mask=here, other=0.0).to(tl.float64)
    # Minus infinity marks what cannot be picked: columns beyond N and, later, chosen tokens.
    variance = tl.where(here, q * q * own, float("-inf"))
    floor = exhausted * tl.max(variance, 0)
    some = tl.arange(0, ROWS)[:, None].to(tl.int64)
    newest = factor
    for step in range(k):
        # Rounded to float32, as in the plain loop: float64 sums in another order differ in the last bits.
        gain = tl.where(variance > floor, variance, tl.where(variance == float("-inf"), -1.0, 0.0)).to(tl.float32)
        pick = tl.argmax(gain, 0, tie_break_left=True).to(tl.int64)
        tl.store(order + image * k + step, pick)
        # The other threads of this program wrote their parts of the last Cholesky row.
        tl.debug_barrier()
        known = tl.zeros([BLOCK], tl.float64)
        for start in range(0, step, ROWS):
            past = start + some
            at_pick = tl.load(factor + past * n + pick, mask=past < step, other=0.0)
            rows = tl.load(factor + past * n + column[None, :], mask=(past < step) & here[None, :], other=0.0)
            known += tl.sum(rows * at_pick, 0)
        pivot = tl.max(tl.where(column == pick, variance, float("-inf")), 0)
        live = pivot > floor
        row = tl.load(quality + image * n + pick) * tl.load(similarity + pick * n + column, mask=here, other=0.0) * q
        new = tl.where(live, (row - known) / tl.sqrt(tl.where(live, pivot, 1.0)), 0.0)
        tl.store(newest + column, new, mask=here)
        newest += n
        variance = tl.where(column == pick, float("-inf"), variance - new * new)


@triton.jit
def _gains(similarity, weight, best, gain, n, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    there = token < n
    rows = similarity + (image * n + token[:, None]) * n
    added = tl.zeros([TOKENS], tl.float64)
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = column < n
        covered = tl.load(best + image * n + column, mask=here, other=0.0)
        s = tl.load(rows + column[None, :], mask=there[:, None] & here[None, :], other=0.0)
        added += tl.sum(tl.maximum(s - covered[None, :], 0.0).to(tl.float64), 1)
    w = tl.load(weight + image * n + token, mask=there, other=0.0)
    tl.store(gain + image * n + token, (w * added).to(tl.float32), mask=there)


@triton.jit(do_not_specialize=["step"])
def _take_best(similarity, gain, best, taken, order, step, n, k, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    here = column < n
    free = tl.load(taken + image * n + column, mask=here, other=1) == 0
    value = tl.where(free, tl.load(gain + image * n + column, mask=here, other=-1.0), -1.0)
    pick = tl.argmax(value, 0, tie_break_left=True).to(tl.int64)
    tl.store(order + image * k + step, pick)
    tl.store(taken + image * n + pick, 1)
    row = tl.load(similarity + (image * n + pick) * n + column, mask=here, other=0.0)
    covered = tl.load(best + image * n + column, mask=here, other=0.0)
    tl.store(best + image * n + column, tl.maximum(covered, row), mask=here)
