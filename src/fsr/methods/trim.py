"""TRIM: "Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs", arXiv 2409.10994
(COLING 2025).

    score = softmax over i of -<u_i, t>,  u = visual_projection(post_layernorm(h)), t = text embedding, both not
        normalised
    kept = the tokens of highest score in raster order, then one token: the mean of all dropped ones

Prunes: in the vision tower, before the projector. Needs: relevance, of which only the order matters (softmax keeps
it). One sort. Differs from the authors' code:
- the minus sign is a property of the text tower and sits in `relevance` already (higher = more relevant): nothing is
  negated here;
- the authors rank by the raw dot product. Relevance in this library is a cosine, so patches of large norm rank
  differently; `trim_tokens` with relevance = -<u, t> is their computation;
- exactly K tokens: K - 1 kept and the mean of the rest at the row of the last dropped token (theirs: int(N * share)
  + 1, the mean at the end). K = 1 keeps the best token as it is. The mean is taken after the projector. Their second
  way to find the number of tokens (outliers of the scores) is left out, since the budget is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.methods.base import Method, Picks, register
from fsr.methods.checks import in_range
from fsr.methods.saliency import by_score
from fsr.stages.ranking import top_k
from fsr.tokens import Stage, VisualTokens

__all__ = ["TRIM", "trim_tokens"]


def trim_tokens(features: Tensor, relevance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The authors' output: k kept tokens in raster order and the mean of the dropped ones.

    features: [B, N, D]; relevance: [B, N]. Returns rows long [B, k] (rising) and tokens float32 [B, k + 1, D].
    """
    rows = top_k(relevance, k).sort(-1).values
    hidden = features.float()
    dropped = torch.ones_like(relevance, dtype=torch.bool).scatter_(1, rows, False)
    # Divided before they are added: a sum of large values could leave float32.
    mean = (hidden * (dropped / dropped.sum(1, keepdim=True))[..., None]).sum(1, keepdim=True)
    return rows, torch.cat([hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1])), mean], dim=1)


@register
@dataclass(frozen=True)
class TRIM(Method):
    """The most relevant tokens and the mean of all others. Options: those of `Method`."""

    name = "trim"
    paper = "arXiv 2409.10994"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"relevance"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        relevance, features = self.need(tokens, "relevance"), tokens.features
        if k == 1:
            return by_score(relevance, 1)
        kept, out = trim_tokens(features, relevance, k - 1)
        dropped = torch.ones_like(relevance, dtype=torch.bool).scatter_(1, kept, False)
        place = torch.arange(tokens.count, device=features.device)
        last = torch.where(dropped, place, -1).amax(1, keepdim=True)
        rows = torch.cat([kept, last], dim=1)
        stage = torch.full_like(rows, int(Stage.FOCUS))
        stage[:, -1] = int(Stage.MERGED)
        source = dropped & (place != last)
        return Picks(
            rows=rows,
            stage=stage,
            features=in_range(out, features),
            merged_into=torch.where(source, last, -1),
            priority=relevance.float(),
        )
