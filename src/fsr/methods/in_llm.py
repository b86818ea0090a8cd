"""What a method is that drops visual tokens between two decoder layers of the language model, and nothing about models.

Such a method sees one picture of one prompt as tensors (`View`) and returns the rows to keep (`Choice`).
`fsr.pipeline.in_llm` runs it: drops the columns from hidden states, masks, rotary embeddings and so from the KV
caches of all later layers.
All kept tokens keep their original position ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from fsr.errors import BudgetError, UsageError
from fsr.methods.budget import check_keep, count_of
from fsr.methods.chain import IN_LLM, Chainable
from fsr.methods.options import check_options

__all__ = ["Choice", "InLLMMethod", "InLLMSignal", "View", "spread"]

# attention: softmax rows of the layer before the drop; next_attention: of the layer after it; keys: of the layer before
# it, rotated; states: hidden states at the drop; embeddings: what entered the first layer; text: the text behind the
# picture.
InLLMSignal = Literal["attention", "next_attention", "keys", "states", "embeddings", "text"]


@dataclass(frozen=True)
class View:
    """One picture in one prompt just before a drop; S columns (padding included), N tokens of the picture left.

    image: long [N], rising columns of the picture's tokens.
    text: long [T], rising columns of the text behind the picture (no padding, no tokens of other pictures).
    last: the column of the prompt's last token.
    hidden: [S, D], states that enter the next layer.
    embeddings: [S, D], what entered the first layer at these columns; None unless the method needs it.
    normed: hidden states under the model's final norm, [S, D].
    keys: keys of the layer before, rotary applied, repeated to all heads and joined, float32 [S, H * d].
    attention, next_attention: columns [R] to float32 [R, S], the softmax rows of those queries averaged over heads, in
        the layer before and in the layer after the drop.
    order: long [N], the rank at which the method before the language model chose each token (0 = first); None unless
        the method follows it.
    """

    image: Tensor
    text: Tensor
    last: int
    hidden: Tensor
    embeddings: Tensor | None
    normed: Callable[[], Tensor]
    keys: Callable[[], Tensor]
    attention: Callable[[Tensor], Tensor]
    next_attention: Callable[[Tensor], Tensor]
    order: Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """Rows of a picture that stay.

    rows: long [K], distinct, into the N tokens of the view; any order (the library keeps raster order).
    merged: long [M], those of `rows` whose hidden state is replaced; states: [M, D], by what. None where nothing is
        merged.
    """

    rows: Tensor
    merged: Tensor | None = None
    states: Tensor | None = None


@dataclass(frozen=True)
class InLLMMethod(Chainable, ABC):
    """Base of all methods that prune inside the language model.

    Args:
        keep: tokens of each picture after the last drop: a number (int >= 1) or a share (float in (0, 1]) of those that
            enter the language model. Methods with several drops fall geometrically to it, or take one value per drop as
            a tuple. What this means
            as an average over layers: `layer_average`.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    licence_note: ClassVar[str] = ""
    needs: ClassVar[frozenset[InLLMSignal]] = frozenset()
    where: ClassVar[str] = IN_LLM
    # Whether it follows the order of choice of a method before the language model.
    ordered: ClassVar[bool] = False

    keep: int | float | tuple[int | float, ...] = 64

    def __post_init__(self) -> None:
        for keep in self.keep if isinstance(self.keep, tuple) else (self.keep,):
            check_keep(keep)
        check_options(self)

    @abstractmethod
    def drop_layers(self, depth: int) -> tuple[int, ...]:
        """The decoder layers (0-based, rising) in front of which tokens go, for a language model of `depth` layers."""

    @abstractmethod
    def choose(self, view: View, k: int) -> Choice:
        """Exactly k of the N rows of one picture, 1 <= k < N."""

    def signals(self) -> frozenset[InLLMSignal]:
        """What this configuration reads; options may need less than the class declares."""
        return self.needs

    def layers(self, depth: int) -> tuple[int, ...]:
        """`drop_layers`, checked.

        Raises:
            UsageError: a layer that this model does not have, layer 0, or layers that do not rise.
        """
        layers = self.drop_layers(depth)
        if not layers or list(layers) != sorted(set(layers)):
            raise UsageError(f"{self.name}: drop layers {layers} must rise, and there must be one.")
        if layers[0] < 1 or layers[-1] >= depth:
            raise UsageError(
                f"{self.name} drops in front of layers {layers}, and this language model has layers 0 to {depth - 1}, "
                f"of which the first must see every token: give layers from 1 to {depth - 1}."
            )
        if isinstance(self.keep, tuple) and len(self.keep) != len(layers):
            raise BudgetError(
                f"{self.name}: keep={self.keep} for {len(layers)} drops: give one value per drop, or one."
            )
        return layers

    def budgets(self, total: int, depth: int) -> tuple[int, ...]:
        """Tokens of a picture after each drop, of `total` that enter the language model: never rising, at least one."""
        layers = self.layers(depth)
        if isinstance(self.keep, tuple):
            wanted = [count_of(keep, total) for keep in self.keep]
        else:
            share, n = count_of(self.keep, total) / total, len(layers)
            wanted = [max(1, round(total * share ** ((i + 1) / n))) for i in range(n)]
        return tuple(min(wanted[: i + 1]) for i in range(len(wanted)))

    def layer_average(self, total: int, depth: int) -> float:
        """Visual tokens of a picture averaged over all decoder layers: the second way to state the same budget."""
        edges = [0, *self.layers(depth), depth]
        counts = [total, *self.budgets(total, depth)]
        return sum(c * (hi - lo) for c, lo, hi in zip(counts, edges, edges[1:])) / depth

    def at_average(self, average: float, total: int, depth: int) -> Any:
        """The same method with the largest whole `keep` whose `layer_average` is at most `average`.

        Raises:
            BudgetError: the layers in front of the first drop alone hold more.
        """
        fits = [k for k in range(1, total + 1) if replace(self, keep=k).layer_average(total, depth) <= average]
        if not fits:
            least = replace(self, keep=1).layer_average(total, depth)
            raise BudgetError(
                f"{self.name} cannot average {average} of {total} tokens over {depth} layers, the least is "
                f"{least:.1f}: drop earlier or raise the budget."
            )
        return replace(self, keep=fits[-1])


def spread(shares: Sequence[float], depth: int) -> tuple[int, ...]:
    """Shares of the depth as distinct rising layers >= 1 (beyond the depth, and then refused, if it has too few)."""
    layers: list[int] = []
    for share in shares:
        layers.append(max(layers[-1] + 1 if layers else 1, round(share * depth)))
    return tuple(layers)
