"""Scores to [0, 1], the same way for every method (the paper says "normalised to [0, 1]" and no more)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fsr.errors import UsageError

__all__ = ["Normalisation", "minmax", "normalise", "rank", "softmax"]

Normalisation = Literal["minmax", "rank", "softmax"]


def normalise(scores: Tensor, how: Normalisation = "minmax", span: Tensor | None = None) -> Tensor:
    """Scores [..., N], each image on its own, to float32 in [0, 1]; constant scores become all ones.

    Args:
        how: 'minmax', 'rank' (share of tokens that are not above this one) or 'softmax' (scaled so that the highest
            score is 1).
        span: [..., 2], lowest and highest score of the whole image when these tokens are one tile of it; 'minmax' and
            'softmax' then use the image's scale. Ranks are always within the group.

    Raises:
        UsageError: unknown `how`.
    """
    if how == "minmax":
        return minmax(scores, span)
    if how == "softmax":
        return softmax(scores, span)
    if how == "rank":
        return rank(scores)
    raise UsageError(f"normalise={how!r} is unknown: use 'minmax', 'rank' or 'softmax'.")


def minmax(scores: Tensor, span: Tensor | None = None) -> Tensor:
    """(x - lowest) / (highest - lowest), float32; all ones where highest equals lowest."""
    x = scores.float()
    low, high = _span(x, span)
    width = high - low
    return ((x - low) / width).masked_fill_(width == 0, 1.0)


def rank(scores: Tensor) -> Tensor:
    """Share of tokens whose score is not above this one, float32 in (0, 1]; equal scores get equal ranks."""
    x = scores.float()
    not_above = torch.searchsorted(x.sort(dim=-1).values, x.contiguous(), right=True)
    return not_above.float() / x.shape[-1]


def softmax(scores: Tensor, span: Tensor | None = None) -> Tensor:
    """exp(x - highest), float32: the softmax up to a factor, and a common factor of all priorities changes nothing."""
    x = scores.float()
    return (x - _span(x, span)[1]).exp()


def _span(x: Tensor, span: Tensor | None) -> tuple[Tensor, Tensor]:
    if span is None:
        low, high = torch.aminmax(x, dim=-1, keepdim=True)
        return low, high
    span = span.to(device=x.device, dtype=x.dtype)
    return span[..., :1], span[..., 1:]
