"""Saliency from one vision layer without eager attention: hooks on its q and k projections, one softmax row of our own.

The tower runs unchanged on its fast attention kernel. Hooks exist only while one call encodes, and record only in that
call's context, so threads that share a model never see each other's queries.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fsr.errors import UnsupportedModelError

__all__ = [
    "LayerStates",
    "attention_layers",
    "cls_attention",
    "eager_if_compiled",
    "hook_lock",
    "projections",
    "received_attention",
    "record_layers",
    "share_heads",
]

_recording: ContextVar[Any] = ContextVar("fsr_recording", default=None)
# torch numbers hooks with an unguarded counter: two threads that register at once could share a number and lose a hook.
hook_lock = threading.Lock()
# `set_stance` is global to the process.
_stance_lock = threading.RLock()


@dataclass(frozen=True)
class LayerStates:
    """Queries and keys of one attention layer, as its softmax saw them.

    q, k: [B, H, T, d], after norms and rotary embedding; k has fewer heads where the tower shares them.
    scale: factor of q k^T before the softmax.
    segments: long [S + 1] cumulative lengths of packed pictures (Qwen towers, B = 1), or None.
    """

    q: Tensor
    k: Tensor
    scale: float
    segments: Tensor | None = None

    @property
    def mean_keys(self) -> Tensor:
        """Keys averaged over heads, [B, T, d] (VisionZip's metric)."""
        return self.k.mean(dim=1)

    def one_head(self) -> LayerStates:
        """The same states with all heads joined into one of width C = H * d and scale C^-0.5 (PruMerge reads attention
        so)."""
        q, k = (x.transpose(1, 2).flatten(2).unsqueeze(1) for x in (self.q, self.k))
        return LayerStates(q, k, q.shape[-1] ** -0.5, self.segments)


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """All self-attention modules of a vision tower in order, found by structure (module paths change between
    releases)."""
    return [m for m in tower.modules() if hasattr(m, "qkv") or (hasattr(m, "q_proj") and hasattr(m, "k_proj"))]


def cls_attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Mean over heads of the attention that [CLS] (row 0) pays to every patch: FSR Eq. 1.

    q, k: [B, H, 1 + N, d]. Returns float32 [B, N], not renormalised after the [CLS] column is cut. O(N d).
    """
    k = share_heads(q, k)
    logits = torch.matmul(q[:, :, :1].float() * scale, k.float().transpose(-1, -2))
    return logits.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)


def received_attention(q: Tensor, k: Tensor, scale: float, segments: Tensor | None = None, block: int = 128) -> Tensor:
    """Attention that each token receives, averaged over heads and queries: saliency for encoders without [CLS].

    q, k: [B, H, T, d]; with `segments` (cumulative lengths) tokens attend only inside their own segment.
    Returns float32 [B, T]; every segment sums to 1. Blocks of queries keep memory at O(B H block T).
    """
    k = share_heads(q, k)
    bounds = [0, q.shape[2]] if segments is None else [int(s) for s in segments.tolist()]
    out = torch.zeros(q.shape[0], q.shape[2], dtype=torch.float32, device=q.device)
    for lo, hi in pairwise(bounds):
        if hi == lo:
            continue
        keys = k[:, :, lo:hi].float().transpose(-1, -2)
        for start in range(lo, hi, block):
            rows = q[:, :, start : min(start + block, hi)].float() * scale
            out[:, lo:hi] += torch.matmul(rows, keys).softmax(dim=-1).sum(dim=2).mean(dim=1)
        out[:, lo:hi] /= hi - lo
    return out


@contextmanager
def record_layers(tower: nn.Module, layers: Sequence[int]) -> Iterator[Callable[[int], LayerStates]]:
    """Record q and k of some layers (indices into `attention_layers`) while the body runs the tower.

    Yields a function from layer index to `LayerStates`; several runs of the tower inside the body are stacked along B.

    Raises:
        UnsupportedModelError: the tower has no such layer, or (when read) no q and k arrived.
    """
    modules = attention_layers(tower)
    store: dict[tuple[int, str], list[Any]] = {}
    chosen: dict[int, nn.Module] = {}
    for layer in layers:
        if not -len(modules) <= layer < len(modules):
            raise UnsupportedModelError(
                f"the vision tower has {len(modules)} attention layers with q and k projections and layer {layer} was "
                "asked for: write an adapter that names the right tower, or use a method that needs no saliency."
            )
        chosen[layer] = modules[layer]

    def keep(key: tuple[int, str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if _recording.get() is store:
                store.setdefault(key, []).append(output.detach())

        return hook

    def call(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if _recording.get() is store:
                arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                store.setdefault((layer, "call"), []).append({**arguments, **arguments.get("kwargs", {})})

        return hook

    handles = []
    with hook_lock:
        for layer, module in chosen.items():
            for part, projection in projections(module).items():
                handles.append(projection.register_forward_hook(keep((layer, part))))
            handles.append(module.register_forward_pre_hook(call(layer), with_kwargs=True))
    token = _recording.set(store)
    try:
        yield lambda layer: _states(chosen[layer], layer, store)
    finally:
        _recording.reset(token)
        with hook_lock:
            for handle in handles:
                handle.remove()


@contextmanager
def eager_if_compiled(tower: nn.Module) -> Iterator[None]:
    """Run the body uncompiled when any part of the tower went through `torch.compile`, which swallows Python hooks."""
    compiled = any("_orig_mod" in m._modules or getattr(m, "_compiled_call_impl", None) for m in tower.modules())
    with _stance_lock if compiled else nullcontext():
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield


# ----------------------------------------------------------------------------------------------------------------------


def projections(attention: Any) -> dict[str, nn.Module]:
    """The modules whose outputs are q and k (after their norms, where there are any), or both with v as "qkv"."""
    if hasattr(attention, "qkv"):
        return {"qkv": attention.qkv}
    if isinstance(getattr(attention, "q_norm", None), nn.Module) and isinstance(attention.k_norm, nn.Module):
        return {"q": attention.q_norm, "k": attention.k_norm}
    return {"q": attention.q_proj, "k": attention.k_proj}


def _states(attention: nn.Module, layer: int, store: dict[tuple[int, str], list[Any]]) -> LayerStates:
    calls = store.get((layer, "call"), [])
    complete = calls and all(len(store.get((layer, p), [])) == len(calls) for p in projections(attention))
    if not complete:
        raise UnsupportedModelError(
            f"no queries and keys arrived from vision layer {layer} ({type(attention).__name__}): the tower did not "
            "run it in Python (compiled or replaced). Uncompile the tower, or use a method that needs no saliency."
        )
    runs = [_one_run(attention, layer, store, i) for i in range(len(calls))]
    if len(runs) == 1:
        return runs[0]
    return LayerStates(torch.cat([r.q for r in runs]), torch.cat([r.k for r in runs]), runs[0].scale)


def _one_run(attention: nn.Module, layer: int, store: dict[tuple[int, str], list[Any]], i: int) -> LayerStates:
    call = store[layer, "call"][i]
    heads = getattr(attention, "num_heads", None) or getattr(attention, "num_attention_heads", None)
    if "qkv" in projections(attention):
        qkv = store[layer, "qkv"][i]
        q, k, _ = qkv.reshape(*qkv.shape[:-1], 3, heads, -1).unbind(-3)
    else:
        q, k = store[layer, "q"][i], store[layer, "k"][i]
        width = getattr(attention, "head_dim", None) or q.shape[-1] // int(heads)  # type: ignore[arg-type]
        q, k = q.unflatten(-1, (-1, width)), k.unflatten(-1, (-1, width))
    if call.get("position_embeddings") is not None:
        # The model's own rotary function, from the module that defines this attention class.
        rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb_vision", None)
        if rotate is None:
            raise UnsupportedModelError(
                f"{type(attention).__name__} rotates q and k in a way that is not known here: "
                "its adapter must give saliency."
            )
        q, k = rotate(q, k, *call["position_embeddings"])
    if q.dim() == 3:  # towers that pack all pictures into one sequence
        q, k = q.unsqueeze(0), k.unsqueeze(0)
    scale = getattr(attention, "scale", None) or getattr(attention, "scaling", None) or q.shape[-1] ** -0.5
    return LayerStates(q.transpose(1, 2), k.transpose(1, 2), float(scale), call.get("cu_seqlens"))


def share_heads(q: Tensor, k: Tensor) -> Tensor:
    """Keys [B, H_k, T, d] repeated for the query heads that share them, [B, H, T, d]."""
    return k if k.shape[1] == q.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
