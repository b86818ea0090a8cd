"""Models for lmms-eval (extra `eval`), which finds them by the entry point group `lmms_eval.models`.

`fsr` is any family that has an adapter; the other ids are the same model and refuse a checkpoint of another family.
Importing this module imports nothing of lmms-eval, torch or Transformers.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MODELS", "manifests"]

# Model id -> class in `fsr.evaluation.lmms.model`.
MODELS = {
    "fsr": "Pruned",
    "fsr_llava": "PrunedLlava",
    "fsr_llava_next": "PrunedLlavaNext",
    "fsr_llava_next_video": "PrunedLlavaNextVideo",
    "fsr_llava_onevision": "PrunedLlavaOnevision",
    "fsr_llava_video": "PrunedLlavaVideo",
    "fsr_qwen2_vl": "PrunedQwen2VL",
    "fsr_qwen2_5_vl": "PrunedQwen2_5VL",
    "fsr_qwen3_vl": "PrunedQwen3VL",
    "fsr_internvl": "PrunedInternVL",
    "fsr_gemma3": "PrunedGemma3",
    "fsr_smolvlm": "PrunedSmolVLM",
    "fsr_idefics3": "PrunedIdefics3",
}


def manifests() -> list[Any]:
    """One `ModelManifest` per id; the classes are imported when lmms-eval builds one of them."""
    from lmms_eval.models.registry_v2 import ModelManifest

    place = "fsr.evaluation.lmms.model"
    return [ModelManifest(model_id=name, chat_class_path=f"{place}.{cls}") for name, cls in MODELS.items()]
