"""Which columns of a prompt each decoder layer still holds, and what that means for the masks and rotary embeddings it
is given.

Layer 0 holds all L columns, so everything the model counts by its cache (positions, mask length) goes on counting the
whole prompt, and every token keeps its position. A layer behind a drop holds S of them: `source` [B, S] names them, -1
is a filler column (masked), which keeps rows that dropped different numbers rectangular. Later tokens follow in every
layer. The record sits on the KV cache that it
describes: a copied or reordered cache keeps it (beams reorder within one prompt, whose rows have the same mask).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from fsr.errors import UsageError

__all__ = ["Columns", "DropColumns", "check_cache", "columns_of", "forget", "prompt_part", "remember"]

_SLOT = "_fsr_columns"


@dataclass(frozen=True)
class DropColumns:
    """One drop.

    layer: the first decoder layer behind it; before: prompt columns that the layer in front of it holds.
    local: long [B, S], columns of the layer before; source: the same as columns of the whole prompt; -1 where there is
        none.
    ragged: whether any -1 is among them.
    merged: states that replace those of kept columns: (batch row, long [M] columns behind the drop, [M, D]).
    """

    layer: int
    before: int
    local: Tensor
    source: Tensor
    ragged: bool
    merged: tuple[tuple[int, Tensor, Tensor], ...] = ()

    def take(self, hidden: Tensor) -> Tensor:
        """Hidden states in front of the drop, [B, S_before + T, D], without the dropped columns: [B, S + T, D]."""
        later = hidden.shape[1] - self.before
        index = _longer(self.local, self.before, later).clamp_min(0).to(hidden.device)
        short = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        for row, columns, states in self.merged:
            short[row, columns.to(short.device)] = states.to(short)
        return short


@dataclass
class Columns:
    """All drops of one batch of prompts of `length` columns, first layer first."""

    length: int
    drops: list[DropColumns] = field(default_factory=list)
    _seen: dict[tuple[str, int], tuple[Any, int, Any]] = field(default_factory=dict)

    def at(self, layer: int) -> DropColumns | None:
        """The drop that decides what this layer holds, or None where it holds everything."""
        return next((drop for drop in reversed(self.drops) if drop.layer <= layer), None)

    def arguments(
        self, kwargs: dict[str, Any], drop: DropColumns, later: int, queries: int, flash: bool
    ) -> dict[str, Any]:
        """A layer's keyword arguments cut to the columns behind `drop`.

        later: tokens behind the prompt that this layer will hold when it has run.
        queries: tokens that this forward runs behind the drop; all that the layer will hold (prefill, or no cache) or
            the last ones.
        flash: whether the attention takes a [B, columns] mask where it takes one at all.
        """
        kwargs = dict(kwargs)
        mask = kwargs.get("attention_mask")
        columns = _longer(drop.source, self.length, later)
        kwargs["attention_mask"] = self._once(
            "mask", drop, mask, later, lambda: short_mask(mask, columns, drop.ragged, queries, flash)
        )
        if queries == columns.shape[1]:
            turns = kwargs.get("position_embeddings")
            kwargs["position_embeddings"] = self._once("turns", drop, turns, later, lambda: _rows_of(turns, columns))
            # The embeddings carry the positions; bare ids with gaps could be taken for packed prompts.
            if "position_ids" in kwargs:
                kwargs["position_ids"] = None
        return kwargs

    def settle(self) -> None:
        """Drop what was kept for the layers of one forward."""
        self._seen.clear()

    def _once(self, name: str, drop: DropColumns, value: Any, later: int, make: Callable[[], Any]) -> Any:
        """All layers of one forward get the same objects: cut them once (and hold them, so `is` means the same)."""
        known = self._seen.get((name, drop.layer))
        if known is not None and known[0] is value and known[1] == later:
            return known[2]
        made = make()
        self._seen[name, drop.layer] = (value, later, made)
        return made


def prompt_part(kwargs: dict[str, Any], width: int) -> dict[str, Any]:
    """A layer's keyword arguments for its first `width` columns: what stands behind them is a draft, no prompt."""
    kwargs = dict(kwargs)
    mask, turns = kwargs.get("attention_mask"), kwargs.get("position_embeddings")
    if isinstance(mask, Tensor):
        kwargs["attention_mask"] = mask[:, :width] if mask.dim() == 2 else mask[..., :width, :width]
    if turns is not None:
        kwargs["position_embeddings"] = tuple(t[:, :width] for t in turns)
    return kwargs


def short_mask(mask: Any, columns: Tensor, ragged: bool, queries: int, flash: bool) -> Any:
    """A layer's mask cut to `columns` (long [B, S], -1 = filler).

    mask: bool or additive [B or 1, h, Q, W], 0/1 [B, W], or None (plainly causal). Its queries are cut, too, if they
        are as many as the columns that stay.
    """
    valid = columns >= 0
    if mask is None:
        if not ragged:
            return None
        if flash:
            return valid
        s = columns.shape[1]
        causal = torch.ones(queries, s, dtype=torch.bool, device=columns.device).tril(s - queries)
        return valid[:, None, None] & causal
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise UsageError(
            "pruning inside the language model needs an attention whose mask is a tensor: load the model with "
            "attn_implementation='sdpa', 'eager' or 'flash_attention_2'."
        )
    columns, valid = columns.to(mask.device), valid.to(mask.device)
    index, b = columns.clamp_min(0), columns.shape[0]
    if mask.dim() == 2:
        return mask.expand(b, -1).gather(1, index) * valid
    mask = mask.expand(b, -1, -1, -1)
    mask = mask.gather(-1, index[:, None, None].expand(-1, *mask.shape[1:3], -1))
    if queries == columns.shape[1]:
        mask = mask.gather(-2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
    if not ragged:
        return mask
    filler = ~valid[:, None, None]
    if mask.dtype == torch.bool:
        return mask & ~filler
    return mask.masked_fill(filler, torch.finfo(mask.dtype).min)


# ----------------------------------------------------------------------------------------------------------------------


def columns_of(cache: Any) -> Columns | None:
    """The record on a KV cache, if a prompt that lost columns filled it."""
    return getattr(cache, _SLOT, None)


def remember(cache: Any, columns: Columns) -> None:
    """Put the record on the cache."""
    setattr(cache, _SLOT, columns)


def forget(cache: Any) -> None:
    """Take it off again (a cache that was emptied to be filled anew)."""
    if hasattr(cache, _SLOT):
        delattr(cache, _SLOT)


def check_cache(cache: Any, first: int) -> None:
    """Raise `UsageError` unless the layers of a KV cache from `first` on can hold fewer tokens than the others."""
    for layer in getattr(cache, "layers", [])[first:]:
        if getattr(layer, "is_sliding", False):
            raise UsageError(
                "a layer behind the drop attends in a sliding window, which counts columns: drop behind the last such "
                "layer, or prune before the language model."
            )
        if not isinstance(layer, DynamicLayer):
            raise UsageError(
                "pruning inside the language model needs a KV cache that grows layer by layer, not "
                f"{type(layer).__name__}: leave out cache_implementation, or prune before the language model."
            )


def _longer(columns: Tensor, length: int, later: int) -> Tensor:
    """`columns` [B, S] of a prompt of `length`, and the `later` ones behind it: [B, S + later]."""
    if later == 0:
        return columns
    behind = torch.arange(length, length + later, device=columns.device).expand(columns.shape[0], -1)
    return torch.cat([columns, behind], dim=1)


def _rows_of(turns: Any, columns: Tensor) -> Any:
    """Rotary (cos, sin), each [B or 1, W, d], at `columns`."""
    if turns is None:
        return None
    index, b = columns.clamp_min(0), columns.shape[0]
    return tuple(
        t.expand(b, -1, -1).gather(1, index.to(t.device)[..., None].expand(-1, -1, t.shape[-1])) for t in turns
    )
