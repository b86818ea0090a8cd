"""Which checkpoints are served, and which are refused by name."""

from __future__ import annotations

import os
from typing import Any

from fsr.adapters.base import Adapter
from fsr.errors import UnsupportedModelError

__all__ = ["OPT_IN", "check_model_type", "check_shown"]

# Classes that are written, and wait for a machine that can show the whole of them. By the config's `model_type`.
_KERNELS = "vLLM's CPU build runs its recurrent layers in bfloat16 only, and no GPU has shown it yet"
UNSHOWN = {
    "qwen3_5": _KERNELS,
    "qwen3_5_moe": _KERNELS,
    "gemma4": "vLLM's CPU build does not run it as it is, and no GPU has shown it yet",
}
OPT_IN = "FSR_VLLM_UNSHOWN"


def check_shown(model_type: str) -> None:
    """Raise for a family whose class nobody has seen at work, unless the environment says otherwise.

    Raises:
        UnsupportedModelError: with what is missing.
    """
    if (why := UNSHOWN.get(model_type)) and os.environ.get(OPT_IN) != "1":
        raise UnsupportedModelError(
            f"{model_type} inside vLLM: {why}. Set {OPT_IN}=1 to serve it all the same, or use fsr.prune()."
        )


def check_model_type(config: Any, adapter: type[Adapter]) -> None:
    """Raise unless a checkpoint is of the family that a class here was written for.

    Raises:
        UnsupportedModelError: another family, the same in another format, or one that `check_shown` refuses.
    """
    if config.model_type in adapter.model_types:
        check_shown(config.model_type)
        return
    hint = "name the FSR... class of this checkpoint's own architecture in hf_overrides."
    if config.model_type == "internvl_chat":
        hint = "this is InternVL's format with remote code: take the checkpoint whose name ends in -hf."
    raise UnsupportedModelError(f"a checkpoint of type {config.model_type}, and a class for {adapter.name}: {hint}")
