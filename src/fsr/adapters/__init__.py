"""One file per model family; importing this package registers all of them."""

from fsr.adapters import (  # noqa: F401  (imported to be registered)
    gemma3,
    gemma3n,
    gemma4,
    glm4v,
    internvl,
    llama4,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    llava_video,
    mistral3,
    paligemma,
    qwen2_vl,
    qwen3_vl,
    qwen_omni,
    smolvlm,
)
from fsr.adapters.base import Adapter, Encoded, TowerStates, Units
from fsr.adapters.registry import available, find, register

__all__ = ["Adapter", "Encoded", "TowerStates", "Units", "available", "find", "register"]
