"""VScan, first stage: "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", arXiv
2505.22654 (TMLR 2026).

    local  = int(K / 2) tokens: the best of each of 4 x 4 windows by [CLS] attention of a *shallow* layer
    global = the best of the others by [CLS] attention of the deep layer
    every dropped token goes to its nearest kept one by cosine:   new = (kept + sum of its tokens) / (1 + their number)

Prunes: after the projector (the second stage, inside the language model at layer 16, is not here). Needs: saliency
(deep), `shallow_saliency` (docs/methods.md), geometry for the windows. Cost: two sorts, one K x (N - K) product.
Differs from the authors' code:
- exactly K tokens for any K: windows are visited in rounds (the best of each window, then the second best of
  each...), inside a round by attention. If int(K / 2) is a multiple of 16 this is their rule; else theirs keeps fewer;
- windows are cut by the place of each token in its crop, for any grid (theirs: 24 x 24 only). Without geometry the
  image is one window;
- a token taken locally cannot be taken again (theirs sets its deep attention to 0, which collides with true zeros).
In LLaVA-NeXT they count the budget per tile: `per="tile"`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.methods.base import Method, Picks, register
from fsr.methods.checks import in_range
from fsr.methods.quotas import crops, rank_in_group, windows
from fsr.stages.ranking import top_k
from fsr.tokens import Stage, VisualTokens

__all__ = ["VScan", "average_into", "local_then_global"]

SIDE = 4  # windows per side


def local_then_global(shallow: Tensor, deep: Tensor, window: Tensor, k: int) -> Tensor:
    """Long [B, k]: int(k / 2) tokens by windows, then the rest by deep attention. shallow, deep, window (long): [B,
    N]."""
    n_local = k // 2
    by_shallow = torch.argsort(shallow.argsort(dim=-1, descending=True, stable=True), dim=-1)
    turn = rank_in_group(shallow, window) * shallow.shape[-1] + by_shallow
    local = turn.argsort(dim=-1, stable=True)[:, :n_local]
    return torch.cat([local, top_k(deep.float().scatter(1, local, -torch.inf), k - n_local)], dim=1)


def average_into(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Average every other token into its most similar kept one.

    features: [B, N, D]; rows: long [B, K]. Returns tokens float32 [B, K, D] and, per token, the row it went to (-1:
    kept) [B, N].
    """
    b, n, d = features.shape
    hidden, unit = features.float(), normalize(features.float(), dim=-1)

    def gather(source: Tensor) -> Tensor:
        return source.gather(1, rows[..., None].expand(-1, -1, d))

    nearest = (unit @ gather(unit).mT).argmax(-1)
    kept = torch.zeros(b, n, dtype=torch.bool, device=rows.device).scatter_(1, rows, True)
    weight = (~kept).float()
    count = torch.ones(rows.shape, device=rows.device).scatter_add(1, nearest, weight)
    # Divided before they are added: a sum of large values could leave float32.
    parts = hidden * (weight / count.gather(1, nearest))[..., None]
    means = (gather(hidden) / count[..., None]).scatter_add(1, nearest[..., None].expand(-1, -1, d), parts)
    return means, torch.where(kept, -1, rows.gather(1, nearest))


@register
@dataclass(frozen=True)
class VScan(Method):
    """Half by windows, half by attention, all others averaged in. Options: those of `Method`."""

    name = "vscan"
    paper = "arXiv 2505.22654"
    licence_note = "authors' code: Tencent licence text (README: MIT); written from the formulas"
    needs = frozenset({"saliency", "shallow_saliency"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        saliency, shallow = self.need(tokens, "saliency"), self.need(tokens, "shallow_saliency")
        b, n = saliency.shape
        window = windows(tokens.geometry, crops(tokens.geometry, b, n, saliency.device), SIDE)
        rows = local_then_global(shallow, saliency, window, k)
        merged, into = average_into(tokens.features, rows)
        stage = torch.full_like(rows, int(Stage.FOCUS))
        stage[:, : k // 2] = int(Stage.SCAN)
        return Picks(
            rows=rows,
            stage=stage,
            features=in_range(merged, tokens.features),
            merged_into=into,
            priority=saliency.float(),
        )
