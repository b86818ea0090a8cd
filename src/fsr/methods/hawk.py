"""HAWK: "Head Importance-Aware Visual Token Pruning in Multimodal Models", arXiv 2604.07812 (CVPR 2026).

    kept = the K tokens of highest r_v = sum_h w_h s_hv / |s_h|_2,  s_hv = mean_t q_t.k_v / sqrt(d)

q and k are the language model's first queries (question) and keys (picture), before rotary positions: see
`signals/first_layer.py`. Prunes after the projector; needs relevance, and takes it from the first layer whatever the
family has. Written from the formulas. Differs from the authors' code:
- the question's text alone is read (theirs: everything behind the picture up to the end of the turn), once for each
  picture; the L2 norm is taken over one picture (theirs: over all visual tokens of the prompt);
- heads count alike unless weights are given. The authors' weights for Qwen2.5-VL-7B are `HAWK_QWEN2_5_VL_7B`, for
  `relevance=FirstLayerRelevance(model, HAWK_QWEN2_5_VL_7B)`; `fsr calibrate` finds some for other models;
- K is a number of tokens (theirs: ceil(N * share)).
"""

from __future__ import annotations

from dataclasses import dataclass

from fsr.methods.base import Method, Picks, register
from fsr.methods.saliency import by_score
from fsr.tokens import VisualTokens

__all__ = ["HAWK"]


@register
@dataclass(frozen=True)
class HAWK(Method):
    """Top-K by relevance from the language model's first layer. Options: those of `Method`."""

    name = "hawk"
    paper = "arXiv 2604.07812"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"relevance"})
    own_relevance = "first-layer"

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        return by_score(self.need(tokens, "relevance"), k)
