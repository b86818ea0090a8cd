"""Attention of convolutional towers: queries and keys that are maps [B, C, rows, columns].

MobileNet v5 (timm, the tower of Gemma 3n) computes attention by itself, with 1 x 1 convolutions `query` and `key`: many
heads of queries share one head of keys. What they give is all that its softmax sees.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fsr.errors import UnsupportedModelError
from fsr.signals.attention import LayerStates

__all__ = ["full_map_attention", "is_map_attention", "map_states"]


def is_map_attention(module: nn.Module) -> bool:
    """Told by structure: timm is not imported for it."""
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("query", "key"))
    sizes = all(isinstance(getattr(module, name, None), int) for name in ("num_heads", "key_dim", "kv_stride"))
    return parts and sizes and isinstance(getattr(module, "scale", None), float)


def full_map_attention(module: Any) -> bool:
    """Whether every cell of its map is a query and a key: some layers take keys, or queries, of a coarser map."""
    return is_map_attention(module) and module.kv_stride == 1 and not getattr(module, "has_query_strides", False)


def map_states(module: Any, query: Tensor, key: Tensor) -> LayerStates:
    """States of one run: the T = rows x columns cells row by row.

    query: [B, H d, rows, columns], key: [B, d, rows, columns].

    Raises:
        UnsupportedModelError: queries and keys are not of one map.
    """
    if query.dim() != 4 or query.shape[-2:] != key.shape[-2:]:
        raise UnsupportedModelError(
            f"{type(module).__name__} attends from a map of {tuple(query.shape[2:])} to one of {tuple(key.shape[2:])}: "
            "its saliency is not known here. Use a method that needs none (such as 'divprune')."
        )
    q = query.unflatten(1, (module.num_heads, module.key_dim)).flatten(3).transpose(-1, -2)
    k = key.flatten(2).transpose(-1, -2).unsqueeze(1)
    return LayerStates(q.detach(), k.detach(), module.scale)
