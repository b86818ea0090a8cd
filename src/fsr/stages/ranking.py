"""The one rule by which this library ranks tokens: highest score first, equal scores by the lowest index."""

from __future__ import annotations

from torch import Tensor

__all__ = ["ranked", "top_k"]


def ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [..., N] in falling order and their indices (long [..., N]); ties keep the lowest index first."""
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values, indices


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices (long [..., k]) of the k highest scores [..., N], highest first; ties to the lowest index.

    torch.topk and an unstable argsort leave the order of equal scores open.
    """
    return ranked(scores)[1][..., :k]
