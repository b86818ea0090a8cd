"""Pairwise cosines in float32, one image at a time so that no batch neighbour can change a bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["DUPLICATE", "cosine", "matmul_each"]

# Two tokens whose cosine is this close to 1 are the same token: the gap is what rounding leaves of a float32 dot
# product. Without the snap, which of several equal tokens is "farthest" would hang on the tiling of a matrix product.
DUPLICATE = 2.0**-20
# Rows per block of the symmetric product: large enough for full GEMM speed, small enough to skip most of the upper
# triangle.
_BLOCK = 256


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
        left = [normalize(x.float(), dim=-1) for x in features]
        if others is None:
            out = torch.stack([_gram(x) for x in left])
        else:
            out = torch.stack([x @ normalize(y.float(), dim=-1).T for x, y in zip(left, others)])
        return out.masked_fill_(out > 1 - DUPLICATE, 1.0).clamp_(min=-1.0)


def matmul_each(a: Tensor, b: Tensor) -> Tensor:
    """Batched [B, I, J] @ [B, J, K], one image at a time: bitwise the same whatever else is in the batch.

    The copies give every operand an allocation of its own, for BLAS may choose its code path by alignment.
    """
    with torch.autocast(a.device.type, enabled=False):
        return torch.stack([x.clone() @ y.clone() for x, y in zip(a, b)])


def _gram(unit: Tensor) -> Tensor:
    n = unit.shape[0]
    if unit.device.type != "cpu" or n <= _BLOCK:
        return unit @ unit.T
    out = unit.new_empty(n, n)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        torch.mm(unit[start:stop], unit[:stop].T, out=out[start:stop, :stop])
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        out[start:stop, stop:] = out[stop:, start:stop].T
    return out
