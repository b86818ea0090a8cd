"""DART: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", arXiv 2502.11494
(EMNLP 2025).

    n1(t) = |key_t|_1, keys of layer K-1 after rotary, all heads joined
    P = the 4 image tokens of largest n1, and the 4 text tokens of largest n1 behind the picture
    x = final norm of the states that enter layer K;  kept = the image pivots
    for p in P in visiting order: move the q free image tokens of lowest cos(x_p, x_t) to kept

Prunes: in front of decoder layer K (0-based, 2), once, at prefill. Needs: keys of layer K-1, states. Kept tokens keep
their position ids, as in the authors' code.
Differs from the authors' code:
- exactly K tokens: the K - 4 that are not pivots are dealt out evenly, the first pivots take the remainder. Theirs
  keeps 8 * (K // 8) + 4: `faithful=True` keeps q = K // 8 per pivot, and so misses K by up to 4 (never more than the
  picture has);
- pivots are visited by falling n1, image pivots first. Theirs iterate over a Python set of column numbers, an order
  nobody chose, which changes the kept set: the function `dart` takes any order;
- the picture's place comes from the prompt (theirs assumes 35 columns in front of 576); batches and several pictures
  (keys are turned as if each prompt began at position 0, so that padding in front changes no norm);
  budgets below 4 and prompts with fewer than 4 text tokens behind the picture work (theirs fail).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.methods.base import register
from fsr.methods.in_llm import Choice, InLLMMethod, View
from fsr.methods.options import LAYER, Within
from fsr.stages.ranking import top_k

__all__ = ["Dart", "dart", "dart_pivots"]


def dart_pivots(keys: Tensor, image: Tensor, text: Tensor, n_image: int, n_text: int) -> tuple[Tensor, Tensor]:
    """Columns of image and text pivots, by falling L1 norm of the keys [S, C]. image: long [N]; text: long [T]."""
    norm = keys.float().abs().sum(-1)
    return image[top_k(norm[image], n_image)], text[top_k(norm[text], n_text)]


def dart(states: Tensor, image: Tensor, pivots: Tensor, order: Tensor, shares: Sequence[int]) -> Tensor:
    """The columns that stay.

    Args:
        states: [S, D], under the final norm; image: long [N] columns of the picture.
        pivots: long [P] columns of the image pivots; order: long [V] columns of all pivots in visiting order.
        shares: tokens that each visit takes, V numbers; their sum and P together at most N.
    Returns:
        long [P + sum(shares)] columns: the pivots, then the tokens in the order of choice (least similar first, ties to
        the lowest column).
    """
    unit = normalize(states.float(), dim=-1)
    free = ~torch.isin(image, pivots)
    kept = [pivots]
    for column, q in zip(order.tolist(), shares):
        similarity = (unit[image] @ unit[column]).masked_fill(~free, torch.inf)
        rows = top_k(-similarity, q)
        free[rows] = False
        kept.append(image[rows])
    return torch.cat(kept)


@register
@dataclass(frozen=True)
class Dart(InLLMMethod):
    """Tokens that duplicate a few pivots least.

    Args:
        keep: see `InLLMMethod`.
        layer: first decoder layer (0-based, >= 1) that runs without the dropped tokens.
        image_pivots: pivots among the picture's tokens, >= 1; text_pivots: among the text behind it, >= 0.
        faithful: the authors' count, pivots + (image_pivots + text_pivots) * (K // their number), instead of exactly K.
    """

    name = "dart"
    paper = "arXiv 2502.11494"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"keys", "states", "text"})

    layer: Annotated[int, LAYER] = 2
    image_pivots: Annotated[int, Within(1, 100_000)] = 4
    text_pivots: Annotated[int, Within(0, 100_000)] = 4
    faithful: bool = False

    def drop_layers(self, depth: int) -> tuple[int, ...]:
        """The one layer."""
        return (self.layer,)

    def choose(self, view: View, k: int) -> Choice:
        """See `InLLMMethod.choose`; with `faithful` the number of rows follows the authors."""
        n = len(view.image)
        p_image, p_text = dart_pivots(view.keys(), view.image, view.text, min(self.image_pivots, k), self.text_pivots)
        order = torch.cat([p_image, p_text])
        if self.faithful:
            q = k // (self.image_pivots + self.text_pivots)
            shares = [q] * len(order)
            while sum(shares) > n - len(p_image):
                shares.pop()
        else:
            each, rest = divmod(k - len(p_image), len(order))
            shares = [each + (i < rest) for i in range(len(order))]
        columns = dart(view.normed(), view.image, p_image, order, shares)
        return Choice(torch.searchsorted(view.image, columns.sort().values))
