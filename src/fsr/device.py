"""Meeting the device, which runs behind Python: before a clock is read, and for many values in one transfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["synchronise", "to_cpu"]


def synchronise(device: torch.device) -> None:
    """Wait until CUDA has done all it was given: a clock read before that times nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_cpu(values: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors on the CPU, with one transfer per device however many there are.

    They travel as one float64 vector (float32 where the device has no float64): flags, row numbers and float32 scores
    arrive exactly as they were.
    """
    host: dict[int, Tensor] = {}
    for device in {v.device for v in values}:
        there = [i for i, v in enumerate(values) if v.device == device]
        if device.type == "cpu":
            host.update((i, values[i].detach()) for i in there)
            continue
        wide = torch.float32 if device.type == "mps" else torch.float64
        flat = torch.cat([values[i].detach().flatten().to(wide) for i in there]).cpu()
        for i, part in zip(there, flat.split([values[i].numel() for i in there])):
            host[i] = part.to(values[i].dtype).view(values[i].shape)
    return [host[i] for i in range(len(values))]
