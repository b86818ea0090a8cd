"""What the signals say, made robust before Focus weighs it: evidence that tokens of like features share, and a floor
that rises with the budget per different thing in the picture.

Both answer one fact: real relevance and real saliency are poor. A token that nothing like it agrees with is noise (an
attention sink, a patch that CLIP gets wrong), and the more tokens there are to give for what there is to see, the less
it pays to bet on signals rather than to cover the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fsr.stages.normalise import minmax

__all__ = ["LookAlikes", "agreement", "lift", "robust_priority", "shared"]

# Cosine distance over which tokens count as alike: a patch of the same thing lies at 0.05 to 0.15, another thing at
# about 1.
LIKE = 0.1
# Numbers of a block of rows that a core's own cache holds.
_IN_CACHE = 2**18


class LookAlikes(NamedTuple):
    """What `shared` found.

    means: float32 [B, N] per score, each token's mean over the tokens that look like it.
    things: float32 [B], how many different things the tokens show: sum_i 1 / (tokens that look like i), 1 for equal
        tokens, N where no two are alike.
    """

    means: list[Tensor]
    things: Tensor


def shared(similarity: Tensor, *scores: Tensor) -> LookAlikes:
    """Scores averaged over look-alikes, sum_j w_ij x_j / sum_j w_ij with w_ij = exp((cos(v_i, v_j) - 1) / 0.1), and the
    number of different things, sum_i 1 / max(1, sum_j w_ij).

    similarity: float32 [B, N, N]; scores: [B, N] each.
    """
    values = [x.float() for x in scores]
    n = similarity.shape[-1]
    if similarity.device.type != "cpu":
        means, alike = _averages(similarity, values)
        return LookAlikes(means, _things(alike))
    means, alike = [torch.empty_like(similarity[..., 0]) for _ in values], torch.empty_like(similarity[..., 0])
    # A few rows at a time stay in the cache through all the steps.
    step = max(1, _IN_CACHE // n)
    for b, image in enumerate(similarity):
        for start in range(0, n, step):
            rows = slice(start, start + step)
            part, alike[b, rows] = _averages(image[rows], [x[b] for x in values])
            for out, mean in zip(means, part):
                out[b, rows] = mean
    return LookAlikes(means, _things(alike))


def _averages(similarity: Tensor, scores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Of some rows of the matrix [..., R, N]: float32 [..., R] for each of the scores [..., N], and sum_j w_ij."""
    # Cosines are at most 1, so exp(10) at most: the shift can wait, and exp in place of softmax saves a pass.
    weight = (similarity / LIKE).exp_()
    whole = weight.sum(dim=-1)
    # A sum per row, not a matrix product: its order depends on nothing else.
    return [(weight * x[..., None, :]).sum(dim=-1) / whole for x in scores], whole * math.exp(-1 / LIKE)


def _things(alike: Tensor) -> Tensor:
    """A token looks like itself at least, even one without a direction (zero)."""
    return alike.clamp_min(1).reciprocal().sum(dim=-1)


def agreement(scores: Tensor, shared_scores: Tensor) -> Tensor:
    """The share of a signal's variance that tokens of like features have in common, in [0, 1]: near 1 for a clean map,
    near 0 for sinks and spikes. [B, N] twice to float32 [B, 1]; a constant signal counts as 1."""
    whole = scores.float().var(dim=-1, keepdim=True, correction=0)
    common = shared_scores.var(dim=-1, keepdim=True, correction=0)
    return torch.where(whole > 0, common / whole.clamp_min(torch.finfo(torch.float32).tiny), 1.0).clamp(0, 1)


def lift(kept: int, things: Tensor, half: float) -> Tensor:
    """How flat the weights become: y^2 / (y^2 + half^2) for y = K / M, the tokens kept per different thing.

    0 trusts the evidence alone, 1 not at all; with half = 0 it is 0. things: float32 [B], M, see `shared`. Returns
    float32 [B].
    """
    if half <= 0:
        return torch.zeros_like(things)
    share = kept / things
    return share * share / (share * share + half * half)


def robust_priority(
    saliency: Tensor,
    relevance: Tensor | None,
    similarity: Tensor,
    kept: int,
    alpha: float = 1.0,
    beta: float = 0.25,
    agree: float = 0.5,
    half: float = 0.5,
) -> Tensor:
    """phi_i = (f + (1 - f) r_i^alpha) * (1 - T (1 - s_i))^beta, float32 [B, N] in [0, 1].

    r and s are the signals with the share `agree` taken from look-alikes, stretched to [0, 1] again; f is `lift` of the
    budget `kept`; T is the agreement of saliency, so that sinks say nothing. Without relevance r_i is 1 - T (1 - s_i),
    and beta counts for nothing.

    saliency, relevance: [B, N] in [0, 1]; similarity: float32 [B, N, N].
    """
    signals = [saliency] if relevance is None else [saliency, relevance]
    common, things = shared(similarity, *signals)
    floor = lift(kept, things, half)[:, None]
    trusted = 1 - agreement(saliency, common[0]) * (1 - _blend(saliency, common[0], agree))
    if relevance is None:
        return floor + (1 - floor) * trusted
    evidence = _blend(relevance, common[1], agree)
    return (floor + (1 - floor) * evidence**alpha) * trusted**beta


def _blend(own: Tensor, common: Tensor, agree: float) -> Tensor:
    return minmax((1 - agree) * own.float() + agree * common)
