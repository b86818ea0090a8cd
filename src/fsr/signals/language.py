"""Rows of attention inside a decoder layer, without eager maps: q and k as the layer's own projections made them, one
softmax row each.

B prompts, S columns, H heads of width d. Nothing is stored for queries that nobody asks about.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from fsr.errors import UnsupportedModelError
from fsr.signals.attention import projections, share_heads

__all__ = ["attention_row", "heads_of", "joined_keys", "rotated"]


def heads_of(attention: nn.Module, projected: Tensor) -> Tensor:
    """What a q or k projection (or its norm) gave, [B, S, H * d] or [B, S, H, d], as [B, H, S, d]."""
    width = getattr(attention, "head_dim", None)
    if not isinstance(width, int) or "q" not in projections(attention):
        raise UnsupportedModelError(
            f"{type(attention).__name__} keeps its queries and keys in a way that is not known here: prune before the "
            "language model of this family."
        )
    return projected.reshape(*projected.shape[:2], -1, width).transpose(1, 2)


def rotated(attention: nn.Module, states: Tensor, embeddings: tuple[Tensor, Tensor] | None) -> Tensor:
    """Queries or keys [B, H, S, d] turned by the model's own rotary function; embeddings: cos, sin [B or 1, S, d]."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None or embeddings is None or embeddings[0].dim() != 3:
        raise UnsupportedModelError(
            f"{type(attention).__name__} turns queries and keys in a way that is not known here: prune before the "
            "language model of this family (or install a newer Transformers)."
        )
    return rotate(states, states, *(e.to(states.device) for e in embeddings))[0]


def attention_row(queries: Tensor, keys: Tensor, scale: float, columns: Tensor, mask: Any) -> Tensor:
    """Softmax weights of some queries of one prompt, averaged over heads.

    queries: [H, R, d]; keys: [H_k, S, d]; columns: long [R], where these queries stand.
    mask: this prompt's part of the layer's own mask: [1 or H, S, S] bool or additive, bool or 0/1 [S] over keys, or
        None (causal).

    Returns: float32 [R, S].
    """
    keys = share_heads(queries[None], keys[None])[0]
    logits = queries.float() @ keys.float().transpose(-1, -2) * scale
    if mask is None or mask.dim() == 1:
        allowed = torch.arange(keys.shape[1], device=keys.device) <= columns[:, None].to(keys.device)
        mask = allowed if mask is None else allowed & mask.to(keys.device).bool()
    else:
        mask = mask[:, columns.to(mask.device)].to(keys.device)
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(-1).mean(0)


def joined_keys(keys: Tensor, heads: int) -> Tensor:
    """Keys of one prompt [H_k, S, d], repeated to all query heads and joined: float32 [S, heads * d]."""
    return keys.repeat_interleave(heads // keys.shape[0], dim=0).transpose(0, 1).flatten(1).float()
