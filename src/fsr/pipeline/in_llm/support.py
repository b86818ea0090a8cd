"""What a language model must be like for tokens to go between its layers, told before any hook is put on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from fsr.errors import UnsupportedModelError
from fsr.signals.attention import projections
from fsr.signals.language import rotated

__all__ = ["check_attention", "check_compiled", "check_layers"]

INSTEAD = "prune before the language model of this family."


def check_layers(model: Any, decoder: Any, first: int) -> None:
    """Raise `UnsupportedModelError` if something counts on all columns behind the first drop, in front of layer
    `first`, or keeps them in another form: DeepStack, shared keys, recurrent states beside attention, indexers."""
    vision = getattr(model.config, "vision_config", None)
    deep = len(getattr(vision, "deepstack_visual_indexes", None) or ())
    if first < deep:
        raise UnsupportedModelError(
            f"{type(model).__name__} adds visual features by column behind its first {deep} decoder layers: drop in "
            f"front of layer {deep} or later."
        )
    if any(getattr(layer.self_attn, "is_kv_shared_layer", False) for layer in decoder.layers):
        raise UnsupportedModelError(
            f"the last layers of {type(decoder).__name__} read keys and values of earlier ones, which hold more tokens "
            "after a drop: prune before the language model."
        )
    caches = {type(layer) for layer in DynamicCache(config=decoder.config).layers}
    if other := caches - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in other))
        raise UnsupportedModelError(
            f"layers of {type(decoder).__name__} keep more of a prompt than keys and values ({names}), which would "
            "hold what is dropped: prune before the language model."
        )


def check_compiled(model: nn.Module, decoder: nn.Module) -> None:
    """Raise `UnsupportedModelError` if the decoder, a part of it or what it is part of (but for the model as a whole)
    is compiled: compiled code skips hooks, depending on what ran before."""
    inner = getattr(decoder, "_orig_mod", decoder)
    parts = set(inner.modules())
    around = [m for m in model.modules() if m is not model and inner in set(m.modules())]
    for module in (*parts, *around):
        forward = module.__dict__.get("forward")
        if (
            "_orig_mod" in module._modules
            or getattr(module, "_compiled_call_impl", None) is not None
            or hasattr(forward, "_torchdynamo_orig_callable")
        ):
            raise UnsupportedModelError(
                "the language model is compiled, which skips hooks: prune inside it uncompiled, or prune before it."
            )


def check_attention(decoder: Any, layers: Any, needs: Mapping[int, frozenset[str]]) -> None:
    """Raise `UnsupportedModelError` unless queries and keys can be read where a method asks for them.

    needs: by drop layer, the signals of its method.
    """
    for layer, signals in needs.items():
        if signals & {"attention", "keys"}:
            _readable(decoder, layers[layer - 1].self_attn)
        if "next_attention" in signals:
            _readable(decoder, layers[layer].self_attn)


def _readable(decoder: Any, attention: Any) -> None:
    name, width = type(attention).__name__, getattr(attention, "head_dim", None)
    whole = all(isinstance(getattr(attention, part, None), nn.Module) for part in ("q_proj", "k_proj"))
    if not whole or "q" not in projections(attention) or not isinstance(width, int):
        raise UnsupportedModelError(f"{name} keeps its queries and keys in a way that is not known here: {INSTEAD}")
    frequencies = getattr(getattr(decoder, "rotary_emb", None), "inv_freq", None)
    if not isinstance(frequencies, Tensor):
        return
    turns = torch.zeros(1, 1, 2 * frequencies.shape[-1])
    try:
        rotated(attention, torch.zeros(1, 1, 1, width), (turns, turns))
    except (RuntimeError, TypeError) as error:
        raise UnsupportedModelError(f"{name} turns a part of its queries and keys only: {INSTEAD}") from error
