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
from fsr.errors import UsageError

__all__ = [
    "cache_in",
    "cache_of",
    "is_empty",
    "mark",
    "placeholders",
    "positions_go_on",
    "remember_positions",
    "rope_deltas",
    "was_filled_up",
]

NAMES = ("cache", "past_key_values")
# A cache that a shortened prompt filled: the number of placeholders per row of that prompt, and (where positions have
# gaps) how far they are ahead of its columns, [B, 1].
MARK = "_fsr_placeholders"
DELTAS = "_fsr_rope_deltas"
# The mask of that prompt, or None, and what tells its rows apart (see `_row_keys`). Both are looked at only by a step
# that needs them: nothing waits for the device behind a prompt.
MASK = "_fsr_mask"
ROWS = "_fsr_rows"


def cache_in(kwargs: Mapping[str, Any]) -> Any:
    """The cache that a call is given, or None."""
    return next((kwargs[name] for name in NAMES if kwargs.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """The cache in a model's output, or None."""
    return next((found for name in NAMES if (found := getattr(output, name, None)) is not None), None)


def is_empty(cache: Any) -> bool:
    """No cache, one that holds nothing yet, or one that cannot say (the pages of `generate_batch`, which are text)."""
    return not hasattr(cache, "get_seq_length") or int(cache.get_seq_length()) == 0


def placeholders(adapter: Adapter, ids: Tensor) -> list[int]:
    """How many placeholders each row of `ids` [B, L] has."""
    taken = torch.tensor(sorted(adapter.placeholder_ids().values()), device=ids.device)
    return torch.isin(ids, taken).sum(-1).tolist()


def mark(cache: Any, adapter: Adapter, ids: Tensor, deltas: Tensor | None, mask: Any = None) -> None:
    """Note on a KV cache which shortened prompt filled it."""
    if deltas is not None:
        deltas = deltas.repeat_interleave(len(ids) // len(deltas), dim=0)
    setattr(cache, MARK, placeholders(adapter, ids))
    setattr(cache, DELTAS, deltas)
    setattr(cache, MASK, mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)
    setattr(cache, ROWS, None)
    if deltas is not None and len(deltas) > 1:
        column = int(cache.get_seq_length()) - 1
        setattr(cache, ROWS, (column, _row_keys(cache, column)))


def was_filled_up(cache: Any) -> bool:
    """Whether the prompt that filled a marked cache has masked columns."""
    mask = getattr(cache, MASK)
    return mask is not None and bool((mask == 0).any())


def _row_keys(cache: Any, column: int) -> Tensor | None:
    """The deepest layer's keys in one column, [B, heads * D]: they depend on all of a row before it. None where the
    cache does not show them (quantised keys, a sliding window that has moved)."""
    held = int(cache.get_seq_length())
    for layer in reversed(getattr(cache, "layers", [])):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.dim() == 4 and keys.shape[2] >= held > column:
            return keys[:, :, column].flatten(1).clone()
    return None


def _of_rows(cache: Any, deltas: Tensor) -> Tensor:
    """`deltas` [B, 1] of the rows as they lie in the cache now: a beam search by hand reorders and repeats them.

    Raises:
        UsageError: rows that differ in their positions cannot be told.
    """
    if bool((deltas == deltas[0]).all()):
        return deltas  # rows that are equally far ahead may change places
    column, before = getattr(cache, ROWS) or (0, None)
    now = None if before is None else _row_keys(cache, column)
    if before is not None and now is not None:
        same = (now[:, None] == before.to(now.device)[None]).all(-1)
    if before is None or now is None or not bool(same.any(-1).all()):
        raise UsageError(
            "the rows of this KV cache have positions of their own, and which row is which can no longer be told: pass "
            "position_ids, or prune with positions='repack'."
        )
    return deltas[same.int().argmax(-1).to(deltas.device)]


def positions_go_on(adapter: Adapter, kwargs: dict[str, Any], call: str = "forward") -> None:
    """What comes behind a cache goes on from the positions that this cache holds.

    Models with multi-dimensional RoPE keep one `rope_deltas` for whatever ran last: they get that of this cache. Others
    count the cache's columns: where its prompt kept numbers with gaps, the call gets `position_ids`.
    A cache that was emptied to be filled anew loses its notes first.
    """
    cache, ids = cache_in(kwargs), kwargs.get("input_ids")
    if not hasattr(cache, MARK):
        return
    if isinstance(ids, Tensor) and ids.shape[-1] > 1 and not kwargs.get("mm_encoder_outputs") and is_empty(cache):
        for note in (MARK, DELTAS, MASK, ROWS):
            delattr(cache, note)
        if hasattr(adapter.base, "rope_deltas"):
            adapter.base.rope_deltas = None
    elif kwargs.get("position_ids") is None and (deltas := getattr(cache, DELTAS)) is not None:
        if not torch.compiler.is_compiling():
            deltas = _of_rows(cache, deltas)
        if hasattr(adapter.base, "rope_deltas"):
            adapter.base.rope_deltas = deltas
        else:
            offset = adapter.forward_position_offset if call == "forward" else 0
            kwargs["position_ids"] = _counted_on(kwargs, int(cache.get_seq_length()), deltas + offset, call)


def _counted_on(kwargs: Mapping[str, Any], cached: int, deltas: Tensor, call: str) -> Tensor:
    """Positions behind `cached` columns, `deltas` [B, 1] ahead of the number of tokens seen: of the new tokens for
    `forward`, of all for `generate`, which cuts them itself."""
    new = next(kwargs[n] for n in ("input_ids", "inputs_embeds") if kwargs.get(n) is not None)
    rows, width = new.shape[:2]
    if len(deltas) == 1 or (len(deltas) != rows and bool((deltas == deltas[0]).all())):
        deltas = deltas[:1].expand(rows, 1)
    if len(deltas) != rows:
        raise UsageError(
            f"{rows} rows go on from a KV cache that a pruned batch of {len(deltas)} filled: pass position_ids, or "
            "prune with positions='repack'."
        )
    whole = width if call == "generate" else cached + width
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != (rows, whole):
        mask = torch.ones(rows, whole, dtype=torch.long, device=new.device)
    numbers = (mask.long().cumsum(-1) - 1 + deltas.to(mask.device)).masked_fill(mask == 0, 0)
    return numbers if call == "generate" else numbers[:, cached:]


def remember_positions(adapter: Adapter, inputs: Mapping[str, Any], call: str = "generate") -> Tensor | None:
    """Tell a model with multi-dimensional RoPE how its steps behind this prompt go on; returns `rope_deltas`."""
    deltas = rope_deltas(adapter, inputs, call)
    if deltas is not None and hasattr(adapter.base, "rope_deltas"):
        adapter.base.rope_deltas = deltas
    return deltas


def rope_deltas(adapter: Adapter, inputs: Mapping[str, Any], call: str = "generate") -> Tensor | None:
    """How far the next position of a prompt is ahead of its number of tokens, [B, 1]; None where the model counts the
    prompt itself. call: whose `position_ids` these are (see `forward_position_offset`)."""
    places, mask, ids = (inputs.get(n) for n in ("position_ids", "attention_mask", "input_ids"))
    if not isinstance(places, Tensor) or not isinstance(ids, Tensor):
        return None
    if places.dim() != (3 if hasattr(adapter.base, "rope_deltas") else 2):
        return None
    seen = mask if isinstance(mask, Tensor) and mask.dim() == 2 else torch.ones_like(ids)
    flat = places[-3:].amax(0) if places.dim() == 3 else places
    top = flat.masked_fill(seen.to(places.device) == 0, -1).amax(-1, keepdim=True)
    offset = adapter.forward_position_offset if call == "forward" else 0
    return top + 1 - offset - seen.sum(-1, keepdim=True).to(top.device)
