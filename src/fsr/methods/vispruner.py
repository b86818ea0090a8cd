"""VisPruner: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", arXiv
2412.01818 (v2, ICCV 2025).

    important = the int(K * ratio) tokens of highest [CLS] attention a
    R = the others, by falling a                                        # not in raster order
    while |R| > K - |important|:
        r = min(8, |R| - (K - |important|));  A, B = R[0::2], R[1::2]
        m_i = max_j cos(h_Ai, h_Bj);  drop the r tokens of A with the largest m;  R = (A by falling m, B)
    kept = important and R

Prunes: chosen on features before the projector, mask after it. Needs: saliency (mean over heads of [CLS] attention
in the layer that made the features), encoder features h. Cost: (N - K) / 8 rounds one after the other, each about
(|R| / 2)^2 C. Differs from the authors' code:
- an odd |R| and a diverse budget below 8 work (theirs raise IndexError or RuntimeError): r is also capped at |A|;
- float32 throughout; theirs runs in float16. The order of A decides the next even/odd split, so one near-tie changes
  all that follows: in float16 their diverse half shares as few as 10-20 % of its tokens with float32. The important
  half is exact;
- equal values go to the lowest place in R (theirs: unstable sort). In LLaVA-NeXT they count the budget per tile:
  `per="tile"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.methods.base import Method, Picks, register
from fsr.methods.options import SHARE
from fsr.stages.ranking import top_k
from fsr.tokens import Stage, VisualTokens

__all__ = ["VisPruner", "drop_duplicates"]

ROUND = 8  # tokens dropped per round, fixed in the authors' code


def drop_duplicates(features: Tensor, rest: Tensor, keep: int) -> Tensor:
    """Thin out `rest` to its `keep` least duplicated tokens.

    features: [B, N, C]. rest: long [B, n], in the order that the first split uses. Returns long [B, keep], in the
    loop's last order.
    """
    unit = normalize(features.float(), dim=-1)

    def rows(index: Tensor) -> Tensor:
        return unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1]))

    while rest.shape[1] > keep:
        a, b = rest[:, 0::2], rest[:, 1::2]
        r = min(ROUND, rest.shape[1] - keep, a.shape[1])
        # One product per image: a stacked one rounds differently with other neighbours, and this loop amplifies it.
        closest = torch.stack([(x @ y.T).amax(-1) for x, y in zip(rows(a), rows(b))])
        a = a.gather(1, closest.argsort(dim=1, descending=True, stable=True)[:, r:])
        rest = torch.cat([a, b], dim=1)
    return rest


@register
@dataclass(frozen=True)
class VisPruner(Method):
    """Important tokens by [CLS] attention, diverse ones by dropping duplicates.

    Args:
        ratio: share of the budget for important tokens, in [0, 1].
    """

    name = "vispruner"
    paper = "arXiv 2412.01818v2"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"saliency", "encoder"})

    ratio: Annotated[float, SHARE] = 0.5

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        saliency, encoder = self.need(tokens, "saliency"), self.need(tokens, "encoder")
        order = top_k(saliency, saliency.shape[-1])
        n_important = int(k * self.ratio)
        important, rest = order[:, :n_important], order[:, n_important:]
        if n_important < k:
            important = torch.cat([important, drop_duplicates(encoder, rest, k - n_important)], dim=1)
        stage = torch.full_like(important, int(Stage.SCAN))
        stage[:, :n_important] = int(Stage.FOCUS)
        return Picks(rows=important, stage=stage, priority=saliency.float())
