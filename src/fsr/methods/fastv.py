"""FastV: "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language
Models", arXiv 2403.06764 (ECCV 2024).

    phi_i = mean over heads of A_(K-1)[last prompt token, image token i];  the top tokens by phi enter layers K, K + 1

Prunes: in front of decoder layer K (0-based, 2 in the paper), once, at prefill; layers 0 to K-1 see and cache
everything. Needs: one attention row of layer K-1. Kept tokens keep their position ids, as in the authors' code.
Differs from the authors' code:
- the paper averages the attention received from all tokens, the code reads the last token's row: so do we;
- the row is computed from that layer's own q and k, so the model stays on its fast attention (they run layer K-1
  eagerly, and the script with a KV cache runs it twice, issue 46);
- tokens are really dropped, with a KV cache (their main variant masks them and ranks anew at every step); batches,
  several pictures (each has its own budget); K = 0, random tokens there, is refused: that is the method `random` in
  front of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fsr.methods.base import register
from fsr.methods.in_llm import Choice, InLLMMethod, View
from fsr.methods.options import LAYER
from fsr.stages.ranking import top_k

__all__ = ["FastV", "fastv_score"]


def fastv_score(row: Tensor, image: Tensor) -> Tensor:
    """phi [N]: the attention that one query pays to the picture. row: float32 [S], mean over heads; image: long [N]."""
    return row[image]


@register
@dataclass(frozen=True)
class FastV(InLLMMethod):
    """Top tokens by the last prompt token's attention, dropped in front of one layer.

    Args:
        keep: see `InLLMMethod`.
        layer: first decoder layer (0-based, >= 1) that runs without the dropped tokens.
    """

    name = "fastv"
    paper = "arXiv 2403.06764"
    licence_note = "authors' code: no licence file; written from the formulas"
    needs = frozenset({"attention"})

    layer: Annotated[int, LAYER] = 2

    def drop_layers(self, depth: int) -> tuple[int, ...]:
        """The one layer."""
        return (self.layer,)

    def choose(self, view: View, k: int) -> Choice:
        """See `InLLMMethod.choose`."""
        row = view.attention(view.image.new_tensor([view.last]))[0]
        return Choice(top_k(fastv_score(row, view.image), k))
