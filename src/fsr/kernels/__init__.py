"""Greedy selection, and what Refine does with it: one function per job, the implementation chosen by the device.

| job | function | who needs it |
|---|---|---|
| farthest point from all chosen ones (k-centre) | `farthest_points`, `farthest_tokens` | DivPrune; FSR's Scan (Eq. 5) |
| heaviest uncovered point (weighted farthest points) | `heaviest_points`, `heaviest_tokens` | FSR's Focus |
| largest determinant (DPP MAP) | `dpp_map`, `dpp_tokens` | CDPruner |
| weighted coverage (facility location) | `coverage` | SCOPE |
| merging into the nearest anchor | `nearest_anchor`, `absorb` | FSR's Refine (Eq. 8, 9) |

`reference` holds the plain torch loops: what the results are defined by, and what runs where nothing faster exists
(MPS, XPU, CUDA without Triton). `cpu` is the fast path for CPU tensors, `gpu` the one for CUDA and ROCm tensors where
Triton can be imported (it comes with torch's CUDA and ROCm builds for Linux). All read the same float32 similarities
(`similarity`, one place for all methods) and break ties by the lowest index, so the indices are the same everywhere;
only the functions in `_tokens` make their own cosines on the CPU, as few as they can, equal to the others up
to the rounding of a dot product. Sums whose order differs between implementations (DPP, coverage) are taken in float64
and compared in float32: equal tokens stay equal. On a GPU nothing synchronises with the host.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from fsr.kernels import cpu, reference
from fsr.kernels.reference import Heaviest, Spread
from fsr.kernels.similarity import cosine, cosine_rows

__all__ = [
    "Heaviest",
    "Spread",
    "absorb",
    "backend_name",
    "cosine",
    "cosine_rows",
    "cosines_of",
    "coverage",
    "directions",
    "dpp_map",
    "dpp_tokens",
    "farthest_points",
    "farthest_tokens",
    "heaviest_points",
    "heaviest_tokens",
    "nearest_anchor",
    "triton_there",
]


@functools.cache
def triton_there() -> bool:
    """Whether CUDA tensors take the Triton kernels."""
    return find_spec("triton") is not None


def _backend(device: torch.device) -> ModuleType:
    if device.type == "cpu":
        return cpu
    if device.type == "cuda" and triton_there():
        from fsr.kernels import gpu

        return gpu
    return reference


def backend_name(device: torch.device) -> str:
    """What selects tokens on this device: "cpu" (the fast path for CPUs), "triton", or "plain" (torch loops: the
    same choices, many launches per step)."""
    return {"cpu": "cpu", "reference": "plain", "gpu": "triton"}[_backend(device).__name__.rpartition(".")[2]]


def directions(features: Tensor) -> Tensor:
    """Tokens divided by their Euclidean norm, [B, N, D] to float32 [B, N, D]; zero vectors stay zero. No gradients."""
    return _backend(features.device).directions(features)


def cosines_of(units: Tensor) -> Tensor:
    """`cosine` of all pairs of tokens whose `directions` [B, N, D] are known: float32 [B, N, N]."""
    return _backend(units.device).cosines_of(units)


def farthest_points(similarity: Tensor, preset: Tensor) -> Spread:
    """Farthest-point sampling around preset anchors, for B images at once.

    Each free step takes the token whose nearest chosen token is least similar (largest 1 - cos), ties to the lowest
    index.

    Args:
        similarity: [B, N, N], symmetric, see `cosine`.
        preset: long [B, K], K <= N; row numbers to take in the first steps, then -1 for every free step. The number of
            preset anchors may differ between images. Without any, the first free step takes token 0.
    """
    return _backend(similarity.device).farthest_points(similarity, preset)


def farthest_tokens(units: Tensor, preset: Tensor) -> Spread:
    """`farthest_points` of tokens whose `directions` are known, without the whole matrix where that is faster.

    Args:
        units: float32 [B, N, D], see `directions`.
        preset: as in `farthest_points`.
    """
    return _backend(units.device).farthest_tokens(units, preset)


def heaviest_points(similarity: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """Tokens that carry the most uncovered weight, one after another, until little of it is left.

    What token i still carries is w_i * g_i, where g_i = min over chosen j of (1 - cos(v_i, v_j)), cut to [0, 1] (1 at
    first, 0 once it is chosen itself). Each step takes the largest, ties to the lowest index, while
    sum_i w_i g_i > left * sum_i w_i.

    Args:
        similarity: float32 [B, N, N], symmetric, see `cosine`.
        weight: float32 [B, N], not negative.
        k: picks at most, k <= N.
        left: the share of the weight that may stay uncovered, in [0, 1].
    """
    return _backend(similarity.device).heaviest_points(similarity, weight, k, left)


def heaviest_tokens(units: Tensor, weight: Tensor, k: int, left: float) -> Heaviest:
    """`heaviest_points` of tokens whose `directions` [B, N, D] are known, without the whole matrix where that is
    faster."""
    return _backend(units.device).heaviest_tokens(units, weight, k, left)


def dpp_map(similarity: Tensor, quality: Tensor, k: int) -> Tensor:
    """Greedy MAP inference of the determinantal point process with kernel L = diag(q) S diag(q).

    Incremental Cholesky (Chen, Zhang, Zhou 2018, Algorithm 1). Once no token adds volume (conditional variance at most
    1e-6 of the largest diagonal entry: rounding error of a float32 similarity), the lowest free indices fill the rest.

    Args:
        similarity: float32 [B, N, N], symmetric with a diagonal of 1.
        quality: float32 [B, N], not negative.
        k: picks, k <= N.

    Returns:
        long [B, k] in the order of choice.
    """
    return _backend(similarity.device).dpp_map(similarity, quality, k)


def dpp_tokens(units: Tensor, quality: Tensor, k: int) -> Tensor:
    """`dpp_map` of tokens whose `directions` [B, N, D] are known, without the whole matrix where that is faster."""
    return _backend(units.device).dpp_tokens(units, quality, k)


def coverage(similarity: Tensor, weight: Tensor, k: int) -> Tensor:
    """Greedy facility location: each step takes the token j of largest w_j * sum_i max(0, S_ji - c_i), c_i = best
    similarity of i to the chosen ones (0 at first).

    Args:
        similarity: float32 [B, N, N], symmetric.
        weight: float32 [B, N], not negative.
        k: picks, k <= N.

    Returns:
        long [B, k] in the order of choice.
    """
    return _backend(similarity.device).coverage(similarity, weight, k)


def nearest_anchor(units: Tensor, similarity: Tensor | None, rows: Tensor, scanned: Tensor) -> tuple[Tensor, Tensor]:
    """The scan anchor that each dropped token is most like (Eq. 8), ties to the lowest index.

    Args:
        units: float32 [B, N, D], see `directions`; similarity: [B, N, N], their cosines, or None: then only those
            with the anchors are computed.
        rows: long [B, K], the kept tokens in any order; scanned: bool [B, K], which of them are anchors.

    Returns:
        float32 [B, N], that similarity, minus infinity for kept tokens; long [B, N], the anchor's place in `rows`.
    """
    return _backend(units.device).nearest_anchor(units, similarity, rows, scanned)


def absorb(features: Tensor, rows: Tensor, sources: Tensor, into: Tensor, weight: Tensor, own: Tensor) -> Tensor:
    """Kept tokens as weighted means of themselves and what they absorb (Eq. 9), in float32; a token that absorbs no
    weight stays as it is, bit for bit.

    Args:
        features: [B, N, D]. rows: long [B, K], the kept tokens; own: float32 [B, K], their weights.
        sources: long [B, M], tokens to absorb; into: long [B, M], each one's place in `rows`; weight: float32 [B, M].

    Returns:
        [B, K, D], dtype of `features`.
    """
    return _backend(features.device).absorb(features, rows, sources, into, weight, own)
