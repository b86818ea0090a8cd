"""Queries and keys of some vision layers while the tower runs, taken where every Transformers tower hands them to its
attention function.

Whatever a tower does to q and k before (norms, rotary embeddings of any form, windows, packed pictures) its own code
has done by then: nothing of it is known here. The tower runs unchanged on its fast kernel. The lookup of attention
functions is listened to only while a tapped layer runs, and only in the context of the call that encodes: threads that
share a model never see each other's queries. Convolutional towers have no such function: there the maps of queries and
keys are noted where they arise (`map_attention`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fsr.errors import UnsupportedModelError
from fsr.signals.attention import LayerStates
from fsr.signals.map_attention import is_map_attention, map_states

__all__ = ["attention_layers", "eager_if_compiled", "hook_lock", "record_layers"]

_recording: ContextVar[Any] = ContextVar("fsr_recording", default=None)
# torch numbers hooks with an unguarded counter: two threads that register at once could share a number and lose a hook.
hook_lock = threading.Lock()
# `set_stance` is global to the process.
_stance_lock = threading.RLock()
_listeners, _lookup = 0, None
_listener_lock = threading.Lock()
# Names of the projections that make a module an attention layer.
PROJECTIONS = (("qkv",), ("qkv_proj",), ("q_proj", "k_proj"), ("q", "k"), ("query", "key"), ("wq", "wk"))
# What changes attention weights besides q, k, scale and mask: not known here.
OTHERWISE = ("softcap", "s_aux", "position_bias")


@dataclass
class _Tape:
    """What one call records. runs: per tapped module, one list of attention calls for each time it ran. maps: its
    latest maps of queries and keys, where it has any."""

    runs: dict[int, list[list[LayerStates]]] = field(default_factory=dict)
    maps: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    listening: bool = False

    def listen(self, on: bool) -> None:
        """Stand between towers and the lookup of attention functions, as long as anybody records."""
        global _listeners, _lookup
        if on == self.listening:
            return
        self.listening = on
        with _listener_lock:
            _listeners += 1 if on else -1
            here = ALL_ATTENTION_FUNCTIONS.__dict__
            if on and _listeners == 1:
                _lookup = here.get("get_interface")
                here["get_interface"] = _get_interface
            elif _listeners == 0 and _lookup is None:
                del here["get_interface"]
            elif _listeners == 0:
                here["get_interface"] = _lookup

    def hear(self, run: Callable[..., Any], module: Any, q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        """An attention function that notes its arguments."""
        if (calls := self.runs.get(id(module))) is not None:
            mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[1] if len(args) > 1 else None
            scale, segments = kwargs.get("scaling"), kwargs.get("cu_seq_lens_q")
            if any(kwargs.get(name) is not None for name in OTHERWISE) or not (mask is None or torch.is_tensor(mask)):
                raise UnsupportedModelError(
                    f"{type(module).__name__} weighs attention in a way that is not known here (or with a mask of type "
                    f"{type(mask).__name__}): load the model with attn_implementation='sdpa', or use a method that "
                    "needs no saliency (such as 'divprune')."
                )
            scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
            mask = mask[:, None, None].bool() if mask is not None and mask.dim() == 2 else mask
            calls[-1].append(LayerStates(q.detach(), k.detach(), scale, segments, mask))
        return run(module, q, k, *args, **kwargs)


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """All self-attention modules of a vision tower in order, found by structure (module paths change between
    releases)."""
    named = [dict(m.named_children()) for m in tower.modules()]
    return [m for m, has in zip(tower.modules(), named) if any(all(n in has for n in names) for names in PROJECTIONS)]


@contextmanager
def record_layers(tower: nn.Module, layers: Sequence[int]) -> Iterator[Callable[[int], LayerStates]]:
    """Record q and k of some layers (indices into `attention_layers`) while the body runs the tower.

    Yields a function from layer index to `LayerStates`; several runs of the tower inside the body are stacked along B
    (pictures of different lengths: joined along T as segments).

    Raises:
        UnsupportedModelError: the tower has no such layer, or (when read) no q and k arrived.
    """
    modules = attention_layers(tower)
    chosen: dict[int, nn.Module] = {}
    for layer in layers:
        if not -len(modules) <= layer < len(modules):
            raise UnsupportedModelError(
                f"the vision tower has {len(modules)} attention layers with q and k projections and layer {layer} was "
                "asked for: write an adapter that names the right tower, or use a method that needs no saliency "
                "(such as 'divprune')."
            )
        chosen[layer] = modules[layer]
    tape = _Tape()

    def before(module: nn.Module, args: Any) -> None:
        if _recording.get() is tape:
            tape.runs.setdefault(id(module), []).append([])
            tape.listen(True)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if _recording.get() is not tape:
            return
        tape.listen(False)
        query, key = (tape.maps.pop((id(module), part), None) for part in ("query", "key"))
        if query is not None and key is not None:
            tape.runs[id(module)][-1].append(map_states(module, query, key))

    def note(owner: nn.Module, part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if _recording.get() is tape:
                tape.maps[id(owner), part] = output.detach()

        return hook

    handles = []
    with hook_lock:
        for module in {id(m): m for m in chosen.values()}.values():
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
            for part in ("query", "key") if is_map_attention(module) else ():
                handles.append(getattr(module, part).register_forward_hook(note(module, part)))
    token = _recording.set(tape)
    try:
        yield lambda layer: _joined(chosen[layer], layer, tape)
    finally:
        tape.listen(False)
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


def _get_interface(name: Any, default: Any) -> Any:
    """`AttentionInterface.get_interface`, noting what the function that it finds is called with."""
    found = (_lookup or partial(type(ALL_ATTENTION_FUNCTIONS).get_interface, ALL_ATTENTION_FUNCTIONS))(name, default)
    tape = None if torch.compiler.is_compiling() else _recording.get()
    return found if tape is None else partial(tape.hear, found)


def _joined(attention: nn.Module, layer: int, tape: _Tape) -> LayerStates:
    """All runs of one layer as one."""
    runs = tape.runs.get(id(attention), [])
    if not runs:
        raise UnsupportedModelError(
            f"no queries and keys arrived from vision layer {layer} ({type(attention).__name__}): the tower did not "
            "run it in Python (compiled or replaced). Uncompile the tower, or use a method that needs no saliency "
            "(such as 'divprune')."
        )
    if not all(runs):
        raise UnsupportedModelError(
            f"{type(attention).__name__} computes attention by itself, not through Transformers' attention functions: "
            "its queries and keys cannot be read. Use a method that needs no saliency (such as 'divprune')."
        )
    states = [_in_segments(calls) for calls in runs]
    if len({s.q.shape[1:] for s in states}) > 1:
        return _in_segments(states)
    if len(states) == 1:
        return states[0]
    masks = [s.mask for s in states if s.mask is not None]
    if masks and (len(masks) < len(states) or len({m.shape[1:] for m in masks}) > 1):
        raise UnsupportedModelError(f"{type(attention).__name__} ran with masks of different shapes.")
    return LayerStates(
        torch.cat([s.q for s in states]),
        torch.cat([s.k for s in states]),
        states[0].scale,
        states[0].segments,
        torch.cat([m.expand(s.q.shape[0], *m.shape[1:]) for m, s in zip(masks, states)]) if masks else None,
    )


def _in_segments(calls: list[LayerStates]) -> LayerStates:
    """Attention within several pictures, one call each, as one sequence of segments."""
    if len(calls) == 1:
        return calls[0]
    if any(c.mask is not None or c.segments is not None or len(c.q) != 1 for c in calls):
        raise UnsupportedModelError(
            "the vision tower attends in several padded pieces: its saliency is not known here."
        )
    ends = torch.tensor([0, *accumulate(c.q.shape[2] for c in calls)], device=calls[0].q.device)
    q, k = (torch.cat([getattr(c, part) for c in calls], dim=2) for part in ("q", "k"))
    return LayerStates(q, k, calls[0].scale, ends)
