"""What others put around a model: torch.compile, PEFT, DataParallel and DistributedDataParallel."""

from __future__ import annotations

import reprlib
from typing import Any

from torch import nn

from fsr.errors import UnsupportedModelError

__all__ = ["unwrapped"]


def unwrapped(model: Any) -> Any:
    """The model itself, however deep it is wrapped. Its wrappers go on working: pruning sits on the model.

    Raises:
        UnsupportedModelError: DataParallel over several devices, which runs copies of the model; or no model at all.
    """
    while True:
        inner = model
        if isinstance(model, nn.DataParallel):
            if len(model.device_ids) > 1:
                raise UnsupportedModelError(
                    "DataParallel copies the model to every device, and pruning sits on one device: use "
                    "DistributedDataParallel, or DataParallel with one device."
                )
            inner = model.module
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        elif hasattr(model, "_orig_mod"):
            inner = model._orig_mod
        elif callable(base := getattr(model, "get_base_model", None)):
            inner = base()
        if inner is model:
            break
        model = inner
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{reprlib.repr(model)} is no model: give a vision-language model of Transformers, as "
            "AutoModelForImageTextToText.from_pretrained(...) returns it."
        )
    return model
