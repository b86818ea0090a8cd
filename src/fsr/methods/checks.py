"""What must be true of an image before a method picks from it. Values are tested on the device: the result is one
flag per image, which the caller reads together with those of all others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fsr.errors import FeatureError
from fsr.tokens import VisualTokens

__all__ = ["check_shapes", "finite", "in_range", "refuse_nonfinite"]


def check_shapes(tokens: VisualTokens, extras: Mapping[str, Tensor]) -> None:
    """Raise `FeatureError` unless features are [N, D], scores [N] and `extras` [N, ...], N >= 1."""
    n = tokens.count
    if tokens.features.dim() != 2 or n == 0:
        raise FeatureError(f"features must be [N, D] with N >= 1, not {tuple(tokens.features.shape)}.")
    for name, value in _scores(tokens).items():
        if value.shape != (n,):
            raise FeatureError(f"{name} must have shape [{n}], not {tuple(value.shape)}.")
    for name, extra in extras.items():
        if extra.dim() == 0 or extra.shape[0] != n:
            raise FeatureError(f"{name} must have {n} rows, not shape {tuple(extra.shape)}.")


def finite(tokens: VisualTokens, extras: Mapping[str, Tensor]) -> Tensor:
    """Bool []: features, and scores and `extras` of patches, have finite sums. Nearly always true, and true says that
    no value is NaN or infinite; false may also be a sum beyond float32 (`refuse_nonfinite` tests every value)."""
    device = tokens.features.device
    sums = [tokens.features.detach().sum(dtype=torch.float32)]
    for value in (*_scores(tokens).values(), *extras.values()):
        sums.append(_patches(value, tokens).detach().sum(dtype=torch.float32).to(device, non_blocking=True))
    return torch.stack(sums).isfinite().all()


def refuse_nonfinite(tokens: VisualTokens, extras: Mapping[str, Tensor]) -> None:
    """Raise `FeatureError` about the first tensor that holds NaN or infinity, if any does."""
    if not bool(tokens.features.isfinite().all()):
        raise FeatureError("visual features hold NaN or infinity: check the image and the dtype of the vision tower.")
    for name, value in _scores(tokens).items():
        if not bool(_patches(value, tokens).isfinite().all()):
            raise FeatureError(f"{name} holds NaN or infinity: check the vision and text towers.")
    for name, extra in extras.items():
        if not bool(_patches(extra, tokens).isfinite().all()):
            raise FeatureError(f"{name} holds NaN or infinity: check the vision tower.")


def in_range(merged: Tensor, features: Tensor) -> Tensor:
    """Merged tokens, float32, in the dtype of `features`: a sum beyond its range (float16 ends at 65504) becomes its
    largest value, not infinity."""
    limits = torch.finfo(features.dtype)
    return merged.clamp(limits.min, limits.max).to(features.dtype)


def _scores(tokens: VisualTokens) -> dict[str, Tensor]:
    scores = {"saliency": tokens.saliency, "relevance": tokens.relevance}
    return {name: value for name, value in scores.items() if value is not None}


def _patches(value: Tensor, tokens: VisualTokens) -> Tensor:
    """[N, ...] with zeros in structural rows, which are never scored."""
    if tokens.structural is None:
        return value
    mask = tokens.structural.to(value.device, non_blocking=True)
    return value.masked_fill(mask.view(-1, *[1] * (value.dim() - 1)), 0)
