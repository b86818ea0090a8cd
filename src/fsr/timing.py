"""Waiting for the device, so that times by stage mean something."""

from __future__ import annotations

import torch

__all__ = ["wait"]


def wait(device: torch.device) -> None:
    """CUDA runs behind Python: a clock read without waiting times nothing. Costs one synchronisation per stage."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
