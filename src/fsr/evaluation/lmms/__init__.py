"""Models for lmms-eval (extra `eval`), which finds them by the entry point group `lmms_eval.models`.

`fsr` is any family that has an adapter; the other ids are the same model and refuse a checkpoint of another family.
Importing this module imports nothing of lmms-eval, and no model class before one is asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MODELS", "manifests"]

# Model id -> module and class below this package.
MODELS = {
    "fsr": "model.Pruned",
    "fsr_llava": "families.PrunedLlava",
    "fsr_llava_next": "families.PrunedLlavaNext",
    "fsr_llava_next_video": "families.PrunedLlavaNextVideo",
    "fsr_llava_onevision": "families.PrunedLlavaOnevision",
    "fsr_llava_video": "families.PrunedLlavaVideo",
    "fsr_qwen2_vl": "families.PrunedQwen2VL",
    "fsr_qwen2_5_vl": "families.PrunedQwen2_5VL",
    "fsr_qwen3_vl": "families.PrunedQwen3VL",
    "fsr_internvl": "families.PrunedInternVL",
    "fsr_gemma3": "families.PrunedGemma3",
    "fsr_smolvlm": "families.PrunedSmolVLM",
    "fsr_idefics3": "families.PrunedIdefics3",
}


def manifests() -> list[Any]:
    """One `ModelManifest` per id; the classes are imported when lmms-eval builds one of them."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=name, chat_class_path=f"{__name__}.{cls}") for name, cls in MODELS.items()]
