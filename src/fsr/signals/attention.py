"""Saliency from the queries and keys of one vision layer: [CLS] rows, or attention received. Arithmetic only; `tap`
records.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LayerStates", "cls_attention", "projections", "received_attention", "share_heads"]


@dataclass(frozen=True)
class LayerStates:
    """Queries and keys of one attention layer, as its softmax saw them.

    q, k: [B, H, T, d], after norms and rotary embedding; k has fewer heads where the tower shares them.
    scale: factor of q k^T before the softmax.
    segments: long [S + 1] cumulative lengths of packed pictures (Qwen towers, B = 1), or None.
    mask: the layer's own mask, bool or additive [B, 1, T, T] or bool [B, 1, 1, T], or None (all see all).
    """

    q: Tensor
    k: Tensor
    scale: float
    segments: Tensor | None = None
    mask: Tensor | None = None

    @property
    def mean_keys(self) -> Tensor:
        """Keys averaged over heads, [B, T, d] (VisionZip's metric)."""
        return self.k.mean(dim=1)

    def one_head(self) -> LayerStates:
        """The same states with all heads joined into one of width C = H * d and scale C^-0.5 (PruMerge reads attention
        so)."""
        q, k = (x.transpose(1, 2).flatten(2).unsqueeze(1) for x in (self.q, share_heads(self.q, self.k)))
        return replace(self, q=q, k=k, scale=q.shape[-1] ** -0.5)


def cls_attention(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Mean over heads of the attention that [CLS] (row 0) pays to every patch: FSR Eq. 1.

    q, k: [B, H, 1 + N, d]; mask: see `LayerStates`. Returns float32 [B, N], not renormalised after the [CLS] column is
    cut. O(N d).
    """
    k = share_heads(q, k)
    logits = torch.matmul(q[:, :, :1].float() * scale, k.float().transpose(-1, -2))
    if mask is not None:
        logits = logits.masked_fill(~_allowed(mask, 0, 1), -torch.inf)
    return logits.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)


def received_attention(
    q: Tensor,
    k: Tensor,
    scale: float,
    segments: Tensor | None = None,
    mask: Tensor | None = None,
    block: int = 128,
) -> Tensor:
    """Attention that each token receives, averaged over heads and queries: saliency for encoders without [CLS].

    q, k: [B, H, T, d]; with `segments` (cumulative lengths) tokens attend only inside their own segment, with `mask`
    (see `LayerStates`) where it lets them. Columns that no query sees are padding: their queries count for nothing and
    they receive 0.
    Returns float32 [B, T]; every segment sums to 1. Blocks of queries keep memory at O(B H block T).
    """
    k = share_heads(q, k)
    bounds = [0, q.shape[2]] if segments is None else [int(s) for s in segments.tolist()]
    out = torch.zeros(q.shape[0], q.shape[2], dtype=torch.float32, device=q.device)
    if mask is not None:
        return _received_under(q, k, scale, mask, block, out)
    for lo, hi in pairwise(bounds):
        if hi == lo:
            continue
        keys = k[:, :, lo:hi].float().transpose(-1, -2)
        for start in range(lo, hi, block):
            rows = q[:, :, start : min(start + block, hi)].float() * scale
            out[:, lo:hi] += torch.matmul(rows, keys).softmax(dim=-1).sum(dim=2).mean(dim=1)
        out[:, lo:hi] /= hi - lo
    return out


def _received_under(q: Tensor, k: Tensor, scale: float, mask: Tensor, block: int, out: Tensor) -> Tensor:
    """The same under a mask: each column is divided by the number of queries that see it."""
    keys, seen = k.float().transpose(-1, -2), torch.zeros_like(out)
    blocks = [(s, min(s + block, q.shape[2])) for s in range(0, q.shape[2], block)]
    real = torch.zeros_like(out, dtype=torch.bool)
    for start, end in blocks:
        real |= _allowed(mask, start, end).any(1).any(1).expand_as(real)
    for start, end in blocks:
        allowed = _allowed(mask, start, end).expand(-1, -1, end - start, -1) & real[:, None, start:end, None]
        logits = torch.matmul(q[:, :, start:end].float() * scale, keys).masked_fill(~allowed, -torch.inf)
        out += logits.softmax(dim=-1).nan_to_num(0).sum(dim=2).mean(dim=1)
        seen += allowed.any(1).sum(1)
    return out / seen.clamp_min(1)


def _allowed(mask: Tensor, start: int, end: int) -> Tensor:
    """Rows start ... end of a mask as bool, [B, 1, rows or 1, T]."""
    rows = mask if mask.shape[-2] == 1 else mask[..., start:end, :]
    return rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2


def projections(attention: Any) -> dict[str, nn.Module]:
    """The modules whose outputs are q and k (after their norms, where there are any), or both with v as "qkv"."""
    if hasattr(attention, "qkv"):
        return {"qkv": attention.qkv}
    if isinstance(getattr(attention, "q_norm", None), nn.Module) and isinstance(attention.k_norm, nn.Module):
        return {"q": attention.q_norm, "k": attention.k_norm}
    return {"q": attention.q_proj, "k": attention.k_proj}


def share_heads(q: Tensor, k: Tensor) -> Tensor:
    """Keys [B, H_k, T, d] repeated for the query heads that share them, [B, H, T, d]."""
    return k if k.shape[1] == q.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
