"""The KV cache in calls and outputs of Transformers, and what pruning notes on it.

Transformers calls it `cache` since 5.24 and `past_key_values` before. Users may go on writing either: newer releases
take the old name, and only say that it is old. Notes sit on the cache itself so that a copied cache keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Adapter

__all__ = [
    "cache_in",
    "cache_of",
    "is_empty",
    "mark",
    "placeholders",
    "positions_go_on",
    "remember_positions",
    "rope_deltas",
]

NAMES = ("cache", "past_key_values")
# A cache that a shortened prompt filled: the number of placeholders per row of that prompt, and (multi-dimensional
# RoPE) how far its positions are ahead of its columns, [B, 1].
MARK = "_fsr_placeholders"
DELTAS = "_fsr_rope_deltas"


def cache_in(kwargs: Mapping[str, Any]) -> Any:
    """The cache that a call is given, or None."""
    return next((kwargs[name] for name in NAMES if kwargs.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """The cache in a model's output, or None."""
    return next((found for name in NAMES if (found := getattr(output, name, None)) is not None), None)


def is_empty(cache: Any) -> bool:
    """No cache, or one that holds nothing yet."""
    return cache is None or int(cache.get_seq_length()) == 0


def placeholders(adapter: Adapter, ids: Tensor) -> list[int]:
    """How many placeholders each row of `ids` [B, L] has."""
    taken = torch.tensor(sorted(adapter.placeholder_ids().values()), device=ids.device)
    return torch.isin(ids, taken).sum(-1).tolist()


def mark(cache: Any, adapter: Adapter, ids: Tensor, deltas: Tensor | None) -> None:
    """Note on a KV cache which shortened prompt filled it."""
    setattr(cache, MARK, placeholders(adapter, ids))
    setattr(cache, DELTAS, None if deltas is None else deltas.repeat_interleave(len(ids) // len(deltas), dim=0))


def positions_go_on(adapter: Adapter, kwargs: Mapping[str, Any]) -> None:
    """Models with multi-dimensional RoPE keep one `rope_deltas` for whatever ran last: give them that of this cache.

    A cache that was emptied to be filled anew loses its notes first.
    """
    cache, ids = cache_in(kwargs), kwargs.get("input_ids")
    if not hasattr(cache, MARK):
        return
    if isinstance(ids, Tensor) and ids.shape[-1] > 1 and kwargs.get("mm_encoder_outputs") is None and is_empty(cache):
        delattr(cache, MARK)
        delattr(cache, DELTAS)
        if hasattr(adapter.base, "rope_deltas"):
            adapter.base.rope_deltas = None
    elif kwargs.get("position_ids") is None and (deltas := getattr(cache, DELTAS)) is not None:
        adapter.base.rope_deltas = deltas


def remember_positions(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor | None:
    """Tell a model with multi-dimensional RoPE how its steps behind this prompt go on; returns `rope_deltas`."""
    deltas = rope_deltas(adapter, inputs)
    if deltas is not None:
        adapter.base.rope_deltas = deltas
    return deltas


def rope_deltas(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor | None:
    """How far the next position of a prompt is ahead of its number of tokens, [B, 1]; None with 1-D positions."""
    places, mask, ids = (inputs.get(n) for n in ("position_ids", "attention_mask", "input_ids"))
    if not hasattr(adapter.base, "rope_deltas") or not isinstance(places, Tensor) or places.dim() != 3:
        return None
    seen = mask if isinstance(mask, Tensor) and mask.dim() == 2 else torch.ones_like(ids)  # type: ignore[arg-type]
    top = places[-3:].amax(0).masked_fill(seen.to(places.device) == 0, -1).amax(-1, keepdim=True)
    return top + 1 - seen.sum(-1, keepdim=True).to(top.device)
