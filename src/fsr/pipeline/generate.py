"""What a shorter prompt means for the settings, the KV cache and the output of `generate`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Adapter
from fsr.adapters.wrappers import unwrapped
from fsr.errors import UsageError
from fsr.pipeline.kv_cache import MARK, cache_in, placeholders, was_filled_up
from fsr.pipeline.report import Prepared

__all__ = [
    "refuse_chunks",
    "refuse_foreign_cache",
    "refuse_full_prompt",
    "refuse_own_assistant",
    "refuse_uneven_beams",
    "refuse_wrong_mask",
    "settings",
    "shorter_limits",
    "with_prompt",
]


def refuse_uneven_beams(setting: Callable[[str], Any], prepared: Prepared) -> None:
    """Releases before 5.23 repeat a tensor of features entry by entry, which is only right with one entry per row."""
    import transformers.generation.utils as utils

    copies = max(setting("num_beams") or 1, setting("num_return_sequences") or 1)
    if copies == 1 or hasattr(utils, "_slice_mm_encoder_output"):
        return
    pictured = len(set(prepared.report.rows))
    pooled = [output.pooler_output for output in prepared["mm_encoder_outputs"].values()]
    if any(isinstance(p, Tensor) and len(p) > pictured for p in pooled):
        raise UsageError(
            "beams or several sequences over rows that keep different numbers of tokens need transformers>=5.23 with "
            "this model: give one prompt at a time, or the same budget for each."
        )


def refuse_wrong_mask(kwargs: dict[str, Any]) -> None:
    """In a hand-written loop the mask must continue the shortened prompt, not the one the user typed."""
    cache = cache_in(kwargs)
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    if not hasattr(cache, MARK) or kwargs.get("mm_encoder_outputs"):
        return
    if mask is None and kwargs.get("position_ids") is None and was_filled_up(cache):
        raise UsageError(
            "rows of this batch lost different numbers of columns and were filled up: pass attention_mask, that of the "
            "shortened prompt (pruned.last.attention_mask) with a 1 for every new token, or use generate."
        )
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not isinstance(ids, Tensor):
        return
    cached = int(cache.get_seq_length())
    if mask.shape[1] != cached + ids.shape[1]:
        raise UsageError(
            f"attention_mask has {mask.shape[1]} columns for {cached} cached and {ids.shape[1]} new tokens: "
            "extend the mask of the shortened prompt (pruned.last.input_ids)."
        )


def settings(model: Any, kwargs: dict[str, Any]) -> Callable[[str], Any]:
    """A generation setting in the order in which `generate` reads it: keyword, given config, the model's config."""
    configs = [c for c in (kwargs.get("generation_config"), model.generation_config) if c is not None]

    def get(name: str) -> Any:
        if kwargs.get(name) is not None:
            return kwargs[name]
        return next((v for c in configs if (v := getattr(c, name, None)) is not None), None)

    return get


def shorter_limits(kwargs: dict[str, Any], setting: Callable[[str], Any], removed: int) -> dict[str, Any]:
    """`max_length` and `min_length` count the prompt, which lost `removed` columns; `max_new_tokens` does not."""
    config = kwargs.get("generation_config")
    for length, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = setting(length)
        # `max_new_tokens=None` in the call takes the model's own setting away.
        counted = kwargs[new] if new in kwargs else setting(new)
        if not removed or not value or counted is not None:
            continue
        if config is not None and kwargs.get(length) is None:
            config = kwargs["generation_config"] = copy.deepcopy(config)
            setattr(config, length, max(0, value - removed))
        else:
            kwargs[length] = max(0, value - removed)
    return kwargs


def refuse_full_prompt(kwargs: dict[str, Any], setting: Callable[[str], Any]) -> None:
    """Transformers would say the same with the numbers of the shortened prompt."""
    longest, ids = kwargs.get("max_length"), kwargs.get("input_ids")
    counted = kwargs["max_new_tokens"] if "max_new_tokens" in kwargs else setting("max_new_tokens")
    if longest is not None and counted is None and isinstance(ids, Tensor) and longest <= ids.shape[-1]:
        raise UsageError(
            f"max_length={longest} leaves no room behind a prompt of {ids.shape[-1]} columns: give max_new_tokens."
        )


def with_prompt(output: Any, input_ids: Tensor, length: int) -> Any:
    """The output with the user's own prompt in place of the shortened one."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = input_ids.repeat_interleave(sequences.shape[0] // input_ids.shape[0], dim=0).to(sequences.device)
    whole = torch.cat([prompt, sequences[:, length:]], dim=1)
    if isinstance(output, Tensor):
        return whole
    output.sequences = whole
    return output


def refuse_foreign_cache(adapter: Adapter, kwargs: dict[str, Any]) -> None:
    """A cache filled from a short prompt counts differently from the ids of a long one, and nothing downstream would
    notice."""
    cache, ids = cache_in(kwargs), kwargs.get("input_ids")
    if cache is None or cache.get_seq_length() == 0 or not isinstance(ids, Tensor):
        return
    if adapter.has_pixels(kwargs):
        raise UsageError("pictures together with a filled KV cache cannot be pruned: start without past_key_values.")
    places = placeholders(adapter, ids)
    if any(places) and not hasattr(cache, MARK):
        raise UsageError(
            "this KV cache was not filled inside this block, so whether these input_ids are its prompt cannot be told: "
            "go on from it outside the block, or start without past_key_values."
        )
    if any(places) and places != getattr(cache, MARK):
        raise UsageError(
            "the KV cache was filled from a shortened prompt and these input_ids are not that prompt: continue from "
            "pruned.last.input_ids, or start without past_key_values."
        )


def refuse_own_assistant(model: Any, setting: Callable[[str], Any]) -> None:
    """A pruned model as its own assistant would prune the prompt a second time."""
    assistant = setting("assistant_model")
    if (assistant is not None and unwrapped(assistant) is model) or setting("assistant_early_exit"):
        raise UsageError(
            "a pruned model cannot be its own assistant: give assistant_model another model (or a copy of this one), "
            "or leave it out."
        )


def refuse_chunks(adapter: Adapter, setting: Callable[[str], Any]) -> None:
    if setting("prefill_chunk_size") is None:
        return
    import transformers.generation.utils as utils

    if not (hasattr(utils, "_slice_mm_encoder_output") and adapter.chunked_prefill):
        raise UsageError(
            "prefill_chunk_size would lose the pictures with this model or Transformers release: leave it out."
        )
