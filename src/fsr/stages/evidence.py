"""What the signals say, made robust before Focus weighs it: evidence that tokens of like features share, and a floor
that rises with the budget.

Both answer one fact: real relevance and real saliency are poor. A token that nothing like it agrees with is noise (an
attention sink, a patch that CLIP gets wrong), and the more tokens there are to give, the less it pays to bet on signals
rather than to cover the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsr.stages.normalise import minmax

__all__ = ["agreement", "lift", "robust_priority", "shared"]

# Cosine distance over which tokens count as alike: a patch of the same thing lies at 0.05 to 0.15, another thing at
# about 1.
LIKE = 0.1
# Numbers of a block of rows that a core's own cache holds.
_IN_CACHE = 2**18


def shared(similarity: Tensor, *scores: Tensor) -> list[Tensor]:
    """Each token's scores averaged over the tokens that look like it: sum_j softmax_j(cos(v_i, v_j) / 0.1) x_j.

    similarity: float32 [B, N, N]; scores: [B, N] each. Returns as many float32 [B, N].
    """
    values = [x.float() for x in scores]
    if similarity.device.type != "cpu":
        return _averages(similarity, values)
    n = similarity.shape[-1]
    found = [torch.empty_like(similarity[..., 0]) for _ in values]
    # A few rows at a time stay in the cache through all the steps.
    step = max(1, _IN_CACHE // n)
    for b, image in enumerate(similarity):
        for start in range(0, n, step):
            part = _averages(image[start : start + step], [x[b] for x in values])
            for out, mean in zip(found, part):
                out[b, start : start + step] = mean
    return found


def _averages(similarity: Tensor, scores: Sequence[Tensor]) -> list[Tensor]:
    """Of some rows of the matrix [..., R, N]: float32 [..., R] for each of the scores [..., N]."""
    # Cosines are at most 1, so exp(10) at most: no shift is needed, and exp in place of softmax saves a pass.
    weight = (similarity / LIKE).exp_()
    whole = weight.sum(dim=-1)
    # A sum per row, not a matrix product: its order depends on nothing else.
    return [(weight * x[..., None, :]).sum(dim=-1) / whole for x in scores]


def agreement(scores: Tensor, shared_scores: Tensor) -> Tensor:
    """The share of a signal's variance that tokens of like features have in common, in [0, 1]: near 1 for a clean map,
    near 0 for sinks and spikes. [B, N] twice to float32 [B, 1]; a constant signal counts as 1."""
    whole = scores.float().var(dim=-1, keepdim=True, correction=0)
    common = shared_scores.var(dim=-1, keepdim=True, correction=0)
    return torch.where(whole > 0, common / whole.clamp_min(torch.finfo(torch.float32).tiny), 1.0).clamp(0, 1)


def lift(kept: int, total: int, half: float) -> float:
    """How flat the weights become: x^2 / (x^2 + half^2) for the share x = K / N of tokens kept. 0 trusts the evidence
    alone, 1 not at all; with half = 0 it is 0."""
    share = kept / total
    return share * share / (share * share + half * half) if half > 0 else 0.0


def robust_priority(
    saliency: Tensor,
    relevance: Tensor | None,
    similarity: Tensor,
    alpha: float = 1.0,
    beta: float = 0.25,
    agree: float = 0.5,
    floor: float = 0.0,
) -> Tensor:
    """phi_i = (floor + (1 - floor) r_i^alpha) * (1 - T (1 - s_i))^beta, float32 [B, N] in [0, 1].

    r and s are the signals with the share `agree` taken from look-alikes, stretched to [0, 1] again; T is the agreement
    of saliency, so that sinks say nothing. Without relevance r_i is 1 - T (1 - s_i), and beta counts for nothing.

    saliency, relevance: [B, N] in [0, 1]; similarity: float32 [B, N, N].
    """
    signals = [saliency] if relevance is None else [saliency, relevance]
    common = shared(similarity, *signals)
    trusted = 1 - agreement(saliency, common[0]) * (1 - _blend(saliency, common[0], agree))
    if relevance is None:
        return floor + (1 - floor) * trusted
    evidence = _blend(relevance, common[1], agree)
    return (floor + (1 - floor) * evidence**alpha) * trusted**beta


def _blend(own: Tensor, common: Tensor, agree: float) -> Tensor:
    return minmax((1 - agree) * own.float() + agree * common)
