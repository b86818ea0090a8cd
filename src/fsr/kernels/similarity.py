"""Pairwise cosines in float32, one image at a time so that no batch neighbour can change a bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["DUPLICATE", "aligned", "cosine", "cosine_rows", "cosines_of", "directions", "matmul_each", "settle"]

# Two tokens whose cosine is this close to 1 are the same token: the gap is what rounding leaves of a float32 dot
# product. Without the snap, which of several equal tokens is "farthest" would hang on the tiling of a matrix product.
DUPLICATE = 2.0**-20
# Rows per block of the symmetric product: large enough for full GEMM speed, small enough to skip most of the upper
# triangle.
_BLOCK = 256
_FEW = 16


def cosine(features: Tensor, others: Tensor | None = None) -> Tensor:
    """Cosine similarity of all pairs of tokens, in [-1, 1]; exactly symmetric on CPU when `others` is None.

    A zero vector has cosine 0 with everything, itself included. Cosines above 1 - 2^-20 are set to 1 (see `DUPLICATE`).

    Args:
        features: [B, N, D] or [N, D], any floating dtype; computed in float32, without gradients.
        others: [B, M, D] or [M, D] to compare with; the same tokens when None.

    Returns:
        float32 [B, N, M] (or [N, M]).
    """
    if features.dim() == 2:
        return cosine(features[None], None if others is None else others[None])[0]
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        left = [_unit(x) for x in features]
        if others is None:
            return _together([_gram(x) for x in left])
        return settle(torch.stack([x @ _unit(y).T for x, y in zip(left, others)]))


def directions(features: Tensor) -> Tensor:
    """Tokens divided by their Euclidean norm, [B, N, D] to float32 [B, N, D]; zero vectors stay zero. No gradients."""
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        return _together([_unit(x) for x in features])


def cosines_of(units: Tensor) -> Tensor:
    """`cosine` of tokens whose `directions` [B, N, D] are known."""
    with torch.no_grad(), torch.autocast(units.device.type, enabled=False):
        return _together([_gram(x) for x in map(aligned, units)])


def cosine_rows(units: Tensor, rows: Tensor) -> Tensor:
    """Some rows of the matrix of cosines: `directions` [B, N, D] and long [B, K] to float32 [B, K, N]."""
    # BLAS adds up in another order where it is asked for a few rows only; equal rows would differ in the last bit.
    k = rows.shape[1]
    asked = rows[:, torch.arange(max(k, _FEW), device=rows.device) % k]
    with torch.no_grad(), torch.autocast(units.device.type, enabled=False):
        return settle(torch.stack([(x[r] @ x.T)[:k] for x, r in zip(map(aligned, units), asked)]))


def _unit(features: Tensor) -> Tensor:
    return normalize(features.float(), dim=-1)


def aligned(image: Tensor) -> Tensor:
    """One image of a batch where BLAS would find it if it were alone: it may choose its code path by alignment."""
    return image if image.data_ptr() % 64 == 0 else image.clone()


def settle(cosines: Tensor) -> Tensor:
    """In place: duplicates to 1 (see `DUPLICATE`), rounding below -1 to -1."""
    return cosines.masked_fill_(cosines > 1 - DUPLICATE, 1.0).clamp_(min=-1.0)


def matmul_each(a: Tensor, b: Tensor) -> Tensor:
    """Batched [B, I, J] @ [B, J, K], one image at a time: bitwise the same whatever else is in the batch.

    The copies give every operand an allocation of its own, for BLAS may choose its code path by alignment.
    """
    with torch.autocast(a.device.type, enabled=False):
        return torch.stack([x.clone() @ y.clone() for x, y in zip(a, b)])


def _together(images: list[Tensor]) -> Tensor:
    """A batch, [B, ...]; of one image it is no copy."""
    return images[0][None] if len(images) == 1 else torch.stack(images)


def _gram(unit: Tensor) -> Tensor:
    """Settled cosines [N, N] of one image. On CPU only the lower half is multiplied out and settled, block by block
    while it is in the cache."""
    n = unit.shape[0]
    if unit.device.type != "cpu" or n <= _BLOCK:
        return settle(unit @ unit.T)
    out = unit.new_empty(n, n)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        settle(torch.mm(unit[start:stop], unit[:stop].T, out=out[start:stop, :stop]))
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        out[start:stop, stop:] = out[stop:, start:stop].T
    return out
