"""VisionZip: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467 (CVPR 2025).

    dominant   = the tokens of highest [CLS] attention
    rest       = the others in raster order, n of them
    targets    = rest[0, step, 2 step, ...][:C],  step = max(1, n // C)
    assign     : each other token q of rest goes to argmax_c cos(key_q, key_c)
    contextual = hidden[target] + mean of hidden over its assigned tokens

Prunes: in the vision tower, before the projector. Needs: saliency, `keys` (docs/methods.md). Cost: one sort, one
(n - C) x C product. Differs from the authors' code:
- a method here returns rows of the projector's output, so merging happens there, and the [CLS] token, which the
  authors feed to the projector as one of the D dominant tokens, has no row: our K tokens are all patches;
- a contextual token is the *average* of the target and its assigned mean. Theirs is the sum, with about twice the
  usual norm: `faithful=True` gives it. `visionzip_tokens` is their whole computation, [CLS] included;
- C is a share of K (10 of 64 in their README), at least one token once K >= 2, and never more than the rest has to
  offer (theirs crashes); a contextual token sits at its target's row, so the output is in raster order (theirs:
  [CLS], dominant, contextual).
In LLaVA-NeXT they count the budget per tile: `per="tile"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.methods.base import Method, Picks, register
from fsr.methods.checks import in_range
from fsr.methods.options import Within
from fsr.stages.ranking import top_k
from fsr.tokens import Stage, VisualTokens

__all__ = ["VisionZip", "contextual", "visionzip_tokens"]


def contextual(
    features: Tensor, keys: Tensor, dominant: Tensor, c: int, total: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge all but the dominant tokens into c of them.

    Args:
        features: [B, N, D]; keys: [B, N, H]; dominant: long [B, M]; c: 1 <= c <= N - M.
        total: add target and mean (the authors'); False: average the two.
    Returns:
        targets long [B, c], tokens float32 [B, c, D], the other rows long [B, N - M - c] (raster order), and the
        place in `targets` that each of them goes to.
    """
    b, n, d = features.shape
    free = torch.ones(b, n, dtype=torch.bool, device=features.device).scatter_(1, dominant, False)
    rest = free.nonzero()[:, 1].view(b, n - dominant.shape[1])
    step = max(1, rest.shape[1] // c)
    at = torch.zeros(rest.shape[1], dtype=torch.bool, device=features.device)
    at[torch.arange(c, device=at.device) * step] = True
    targets, others = rest[:, at], rest[:, ~at]
    unit = normalize(keys.float(), dim=-1)

    def rows(source: Tensor, index: Tensor) -> Tensor:
        return source.gather(1, index[..., None].expand(-1, -1, source.shape[-1]))

    assign = (rows(unit, others) @ rows(unit, targets).mT).argmax(-1)
    hidden = features.float()
    count = torch.zeros(b, c, device=features.device).scatter_add_(
        1, assign, torch.ones_like(assign, dtype=torch.float)
    )
    # Divided before they are added: a sum of large values could leave float32.
    parts = rows(hidden, others) / count.gather(1, assign)[..., None]
    mean = torch.zeros(b, c, d, device=features.device).scatter_add_(1, assign[..., None].expand(-1, -1, d), parts)
    target = rows(hidden, targets)
    if total:
        return targets, target + mean, others, assign
    return targets, torch.where((count > 0)[..., None], target / 2 + mean / 2, target), others, assign


def visionzip_tokens(hidden: Tensor, saliency: Tensor, keys: Tensor, d: int, c: int) -> Tensor:
    """The authors' output before the projector: [CLS], d - 1 dominant patches in raster order, c contextual tokens.

    hidden: [B, 1 + N, C] with [CLS] first; saliency: [B, N]; keys: [B, N, H]. Returns float32 [B, d + c, C].
    """
    dominant = top_k(saliency, d - 1).sort(-1).values
    patches = hidden[:, 1:].float()
    kept = patches.gather(1, dominant[..., None].expand(-1, -1, patches.shape[-1]))
    return torch.cat([hidden[:, :1].float(), kept, contextual(patches, keys, dominant, c)[1]], dim=1)


@register
@dataclass(frozen=True)
class VisionZip(Method):
    """Dominant tokens by [CLS] attention, contextual ones that absorb the rest.

    Args:
        contextual: share of the budget for contextual tokens, in [0, 1).
        faithful: contextual token = target + mean, as in the authors' code, instead of their average.
    """

    name = "visionzip"
    paper = "arXiv 2412.04467"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"saliency", "keys"})

    contextual: Annotated[float, Within(0, 1, below=True)] = 10 / 64
    faithful: bool = False

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        saliency, keys, features = self.need(tokens, "saliency"), self.need(tokens, "keys"), tokens.features
        c = 0 if k == 1 or self.contextual == 0 else min(max(1, round(k * self.contextual)), k - 1)
        dominant = top_k(saliency, k - c)
        if c == 0:
            return Picks(dominant, torch.full_like(dominant, int(Stage.FOCUS)), priority=saliency.float())
        targets, merged, others, assign = contextual(features, keys, dominant, c, total=self.faithful)
        rows = torch.cat([dominant, targets], dim=1)
        stage = torch.full_like(rows, int(Stage.MERGED))
        stage[:, : k - c] = int(Stage.FOCUS)
        kept = features.gather(1, dominant[..., None].expand(-1, -1, features.shape[-1]))
        into = torch.full(features.shape[:2], -1, dtype=torch.long, device=features.device)
        return Picks(
            rows=rows,
            stage=stage,
            features=torch.cat([kept, in_range(merged, features)], dim=1),
            merged_into=into.scatter(1, others, targets.gather(1, assign)),
            priority=saliency.float(),
        )
