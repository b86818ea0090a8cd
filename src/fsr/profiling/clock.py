"""Start and end of every forward pass of a model inside `generate`, and what its cache holds after the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from fsr.device import synchronise
from fsr.pipeline.kv_cache import cache_of
from fsr.profiling.memory import cache_bytes, growing_bytes

__all__ = ["Clock", "clock_on"]


class Clock:
    """passes: start and end of each forward pass, in seconds. layers_ms: of the first, without embedding and LM head.

    After the first pass, kv_bytes: the whole cache; growing: bytes of keys and values, by layer; lengths: tokens that
    each layer ran on.
    """

    def __init__(self) -> None:
        self.passes: list[tuple[float, float]] = []
        self.kv_bytes = 0
        self.growing: tuple[int, ...] = ()
        self.lengths: tuple[int, ...] = ()
        self.layers_ms = 0.0
        self._start = self._entered = 0.0

    def before(self, model: Any, args: Any) -> None:
        synchronise(model.device)
        self._start = perf_counter()

    def after(self, model: Any, args: Any, output: Any) -> None:
        synchronise(model.device)
        self.passes.append((self._start, perf_counter()))
        if len(self.passes) == 1:
            cache = cache_of(output)
            self.kv_bytes = cache_bytes(cache)
            self.growing = tuple(growing_bytes(layer) for layer in cache.layers)
            self.lengths = _lengths(cache, self.growing)

    def enter(self, decoder: Any, args: Any) -> None:
        synchronise(next(decoder.parameters()).device)
        self._entered = perf_counter()

    def leave(self, decoder: Any, args: Any, output: Any) -> None:
        synchronise(next(decoder.parameters()).device)
        if not self.passes:
            self.layers_ms = 1e3 * (perf_counter() - self._entered)


def _lengths(cache: Any, growing: Sequence[int]) -> tuple[int, ...]:
    """Tokens that each language layer ran on. Layers that keep no keys (recurrent ones, and those that read the keys of
    others) ran on what the nearest layer before them holds, for no method drops anything inside such a stack."""
    held = [layer.get_seq_length() if size else None for layer, size in zip(cache.layers, growing)]
    last = next(n for n in held if n is not None)
    filled = []
    for n in held:
        last = last if n is None else n
        filled.append(last)
    return tuple(filled)


@contextmanager
def clock_on(model: Any) -> Iterator[Clock]:
    """A clock on the model's forward passes: the first is the prefill, the others decode."""
    clock = Clock()
    decoder = model.get_decoder()
    handles = [
        model.register_forward_pre_hook(clock.before),
        model.register_forward_hook(clock.after),
        decoder.register_forward_pre_hook(clock.enter),
        decoder.register_forward_hook(clock.leave),
    ]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()
