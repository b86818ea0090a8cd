"""PyramidDrop: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
arXiv 2410.17247 (CVPR 2025).

    S drops split the depth evenly (in front of layers 8, 16, 24 of 32); each keeps the share lambda = 1/2 of what is
    left, by phi_i = mean over heads of softmax(q_last K^T / sqrt(d))[i], q and K of the layer behind the drop

Prunes: at prefill, in front of each of these layers. Needs: one attention row of each such layer, made by running that
layer's norm and its q and k projections once more on the states that arrive.
Differs from the authors' code:
- kept tokens keep their position ids; theirs are numbered anew 0..L'-1 at every drop, and decoding subtracts the
  dropped count per layer. One rule for all our methods inside the language model: the position of a patch does not
  move;
- shared key heads (GQA) are repeated for the query heads (theirs fails), several pictures each have their own budget
  (theirs prunes the first), batches may be padded on either side;
- `keep` is what the last drop leaves and the steps are geometric: keep=0.125 with three drops is the paper's 0.5, 0.25,
  0.125.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fsr.methods.base import register
from fsr.methods.fastv import fastv_score
from fsr.methods.in_llm import Choice, InLLMMethod, View, spread
from fsr.methods.options import LAYER, Within
from fsr.stages.ranking import top_k

__all__ = ["PyramidDrop"]


@register
@dataclass(frozen=True)
class PyramidDrop(InLLMMethod):
    """Several drops, each by the last prompt token's attention in the layer to come.

    Args:
        keep: see `InLLMMethod`.
        at: the decoder layers to drop in front of; None spreads `drops` of them evenly over the depth.
        drops: their number where `at` is None.
    """

    name = "pyramiddrop"
    paper = "arXiv 2410.17247"
    licence_note = "authors' code: MIT; written from the formulas"
    needs = frozenset({"next_attention", "states"})

    at: tuple[Annotated[int, LAYER], ...] | None = None
    drops: Annotated[int, Within(1, 1000)] = 3

    def drop_layers(self, depth: int) -> tuple[int, ...]:
        """`at`, or an even split of the depth."""
        if self.at is not None:
            return tuple(self.at)
        return spread([(i + 1) / (self.drops + 1) for i in range(self.drops)], depth)

    def choose(self, view: View, k: int) -> Choice:
        """See `InLLMMethod.choose`."""
        row = view.next_attention(view.image.new_tensor([view.last]))[0]
        return Choice(top_k(fastv_score(row, view.image), k))
