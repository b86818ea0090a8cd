"""PruMerge+: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv 2403.15388.

    a = [CLS] row of softmax(q k^T / sqrt(C)) in the last encoder layer, heads not split
    ratio = share of a above Q3 + 1.5 IQR
    kept = top int(N ratio) by a, and every (int(1 / ratio) / 3)-th token of the raster
    each kept i, with its 32 most similar tokens j by cosine of keys (kept ones too):   y_i = x_i + sum_j a_j x_j
    one token more: sum of a_j x_j over all dropped j

Prunes: in the vision tower, before the projector. Needs: `last_saliency` (that a), `last_keys` (docs/methods.md).
Cost: one K x N product. Differs from the authors' code:
- exactly K tokens. Theirs is adaptive (one outlier token in a picture keeps hundreds: their code divides by zero
  without outliers and steps by zero above a third). `outlier_ratio`, `visit_order` and `absorb` are their
  computation. Here K - 1 are kept and the extra token takes the row of the last dropped one; a quarter of the K - 1
  go by attention, the rest evenly over the other tokens, which is the mix that their formula gives (N ratio and about
  3 N ratio). K = 1 keeps the token of highest attention, neighbours absorbed;
- output in raster order (theirs: order of visit), merged after the projector. The weights a_j are not normalised, as
  in theirs: with a of a softmax over N + 1 tokens the additions are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.errors import UsageError
from fsr.methods.base import Method, Picks, register
from fsr.methods.checks import in_range
from fsr.methods.uniform_grid import even
from fsr.stages.ranking import top_k
from fsr.tokens import Stage, VisualTokens

__all__ = ["PruMerge", "absorb", "outlier_ratio", "visit_order"]

NEIGHBOURS = 32


def outlier_ratio(attention: Tensor) -> float:
    """Share of values above the third quartile plus 1.5 times the interquartile range. attention: any shape."""
    flat = attention.flatten().double()
    q1, q3 = torch.quantile(flat, torch.tensor([0.25, 0.75], dtype=torch.double, device=flat.device))
    return float((flat > q3 + 1.5 * (q3 - q1)).double().mean())


def visit_order(attention: Tensor, ratio: float) -> Tensor:
    """The authors' kept rows in their order: top int(N ratio) by attention, then the lattice rows not yet in it.
    attention: [N].

    Raises:
        UsageError: ratio outside (0, 1/3], where their formula has no lattice.
    """
    if not 0.0 < ratio <= 1 / 3:
        raise UsageError(f"ratio={ratio:.3f}: PruMerge's lattice exists for 0 < ratio <= 1/3 only.")
    n = attention.shape[-1]
    top = top_k(attention[None], int(n * ratio))[0]
    grid = torch.arange(0, n - 1, int(int(1 / ratio) / 3), device=top.device)
    return torch.cat([top, grid[~torch.isin(grid, top)]])


def absorb(features: Tensor, attention: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """Kept tokens with their neighbours added, then the extra token of all dropped ones.

    features: [B, N, D]; attention: [B, N]; keys: [B, N, C]; rows: long [B, M]. Returns float32 [B, M + 1, D].
    """
    b, n, d = features.shape
    weighted = features.float() * attention.float()[..., None]
    unit = normalize(keys.float(), dim=-1)
    similar = unit.gather(1, rows[..., None].expand(-1, -1, unit.shape[-1])) @ unit.mT
    similar.scatter_(2, rows[..., None], -torch.inf)
    near = top_k(similar, min(NEIGHBOURS, n - 1))
    member = torch.zeros_like(similar).scatter_(2, near, 1.0)
    kept = features.float().gather(1, rows[..., None].expand(-1, -1, d)) + member @ weighted
    dropped = torch.ones(b, n, dtype=torch.bool, device=rows.device).scatter_(1, rows, False)
    return torch.cat([kept, (weighted * dropped[..., None]).sum(1, keepdim=True)], dim=1)


@register
@dataclass(frozen=True)
class PruMerge(Method):
    """PruMerge+ at a fixed budget: attention and an even lattice, neighbours absorbed. Options: those of `Method`."""

    name = "prumerge"
    paper = "arXiv 2403.15388"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"last_saliency", "last_keys"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        attention, keys = self.need(tokens, "last_saliency"), self.need(tokens, "last_keys")
        b, n, _ = tokens.features.shape
        place = torch.arange(n, device=attention.device)
        m = max(1, k - 1)
        n_top = max(1, round(m / 4))
        top = top_k(attention, n_top)
        free = torch.ones(b, n, dtype=torch.bool, device=top.device).scatter_(1, top, False)
        rest = free.nonzero()[:, 1].view(b, n - n_top)
        rows = torch.cat([top, rest[:, even(n - n_top, m - n_top).to(rest.device)]], dim=1)
        out = absorb(tokens.features, attention, keys, rows)[:, :k]
        stage = torch.full_like(out[..., 0], int(Stage.SCAN), dtype=torch.long)
        stage[:, :n_top] = int(Stage.FOCUS)
        into = None
        if k > 1:
            dropped = torch.ones(b, n, dtype=torch.bool, device=rows.device).scatter_(1, rows, False)
            last = torch.where(dropped, place, -1).amax(1, keepdim=True)
            rows = torch.cat([rows, last], dim=1)
            stage[:, -1] = int(Stage.MERGED)
            into = torch.where(dropped & (place != last), last, -1)
        return Picks(
            rows=rows,
            stage=stage,
            features=in_range(out, tokens.features),
            merged_into=into,
            priority=attention.float(),
        )
