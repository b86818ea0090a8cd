"""Peak memory of one run: the allocator's own count on CUDA, the resident set on Linux, nothing elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Peak", "PeakMemory", "cache_bytes", "growing_bytes"]

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """total: bytes at the highest point, weights included. above_start: the same minus what was held before the run."""

    total: int
    above_start: int


class PeakMemory:
    """`with PeakMemory(device) as memory: ...`, then `memory.peak` (None where the platform cannot tell)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: Peak | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        else:
            self._start = _resident("VmRSS") if _reset() else None  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            total: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            total = _resident("VmHWM")
        if self._start is not None and total is not None:
            self.peak = Peak(total, max(0, total - self._start))


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache of Transformers really holds: keys and values, padding and text included, and the states of
    recurrent layers."""
    return sum(growing_bytes(layer) + _state_bytes(layer) for layer in cache.layers)


def growing_bytes(layer: Any) -> int:
    """Bytes of the keys and values of one layer of a cache: what grows with the prompt."""
    tensors = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def _state_bytes(layer: Any) -> int:
    kept = (getattr(layer, name, None) or {} for name in ("conv_states", "recurrent_states"))
    return sum(t.nbytes for states in kept for t in states.values() if isinstance(t, torch.Tensor))


def _resident(field: str) -> int | None:
    if not STATUS.exists():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _reset() -> bool:
    """Set the high-water mark of the resident set back to now (Linux only)."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True
