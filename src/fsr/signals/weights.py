"""Weights of a module wherever they lie, and samples of a tower's layers that tell whether they were trained on."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from fsr.errors import RelevanceError

__all__ = ["is_adapted", "layer_samples", "weight_of"]


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter, without its graph; where Accelerate offloaded it (to the CPU or a disk), as its hook would load it.

    Raises:
        RelevanceError: it holds no values and no hook knows them.
    """
    value: Tensor = getattr(module, name).detach()
    if value.device.type != "meta":
        return value
    hook: Any = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        try:
            return part.weights_map[name].detach()
        except (AttributeError, KeyError, TypeError):
            continue
    raise RelevanceError(
        "the weights of the vision tower are offloaded and cannot be read, so which text tower pairs with it cannot be "
        "checked: keep the tower in memory, or use relevance='none'."
    )


def layer_samples(tower: nn.Module) -> dict[str, Tensor]:
    """The first row of every weight matrix in the tower's layers, named from `layers.` on (what stands before it
    changes between releases)."""
    samples = {}
    for path, module in tower.named_modules():
        found = re.search(r"(?:^|\.)(layers\.\d+\..*)$", path)
        own = dict(module.named_parameters(recurse=False))
        if found and "weight" in own and own["weight"].dim() > 1:
            samples[found[1]] = weight_of(module)[0].clone()
    return samples


def is_adapted(tower: nn.Module) -> bool:
    """Whether adapters (LoRA and its kin) sit in the tower's layers."""
    return any("lora_" in path for path, _ in tower.named_modules()) or any(
        type(m).__module__.startswith("peft.tuners") for m in tower.modules()
    )
