"""The first table of docs/models.md: what each family can do, asked of the code and of a tiny model of the family."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import families
from fsr import FSRError, UnsupportedModelError, prune
from fsr.adapters import find
from fsr.methods import FastV
from fsr.serving.vllm import ARCHITECTURES
from fsr.serving.vllm.checkpoints import UNSHOWN
from fsr.signals.first_layer import FirstLayerRelevance

__all__ = ["LABELS", "facts", "glance"]

# Families of tests/families.py as their checkpoints are called, those with the most users first.
LABELS = {
    "qwen3-vl": "Qwen3-VL", "qwen3-vl-moe": "Qwen3-VL with experts",
    "qwen3.5": "Qwen3.5, Qwen3.6", "qwen3.5-moe": "Qwen3.5, Qwen3.6 with experts",
    "gemma4": "Gemma 4", "mistral3": "Mistral 3, Ministral 3, Mistral Small 3.x", "pixtral": "Pixtral",
    "glm4v": "GLM-4.1V", "glm4v-moe": "GLM-4.5V", "glm46v": "GLM-4.6V",
    "internvl": "InternVL 3", "internvl3.5": "InternVL 3.5",
    "qwen2.5-omni": "Qwen2.5-Omni (thinker)", "qwen3-omni": "Qwen3-Omni (thinker)",
    "qwen2.5-vl": "Qwen2.5-VL", "qwen2-vl": "Qwen2-VL", "gemma3": "Gemma 3", "gemma3n": "Gemma 3n",
    "llama4": "Llama 4", "paligemma": "PaliGemma", "smolvlm": "SmolVLM", "idefics3": "Idefics3",
    "llava": "LLaVA-1.5", "llava-next": "LLaVA-NeXT", "llava-next-video": "LLaVA-NeXT-Video",
    "llava-onevision": "LLaVA-OneVision",
}  # fmt: skip
SIGNALS = ("saliency", "keys", "last_saliency", "last_keys", "shallow_saliency", "first_saliency")
# What the refusal of a method inside the language model says, and how the table says it.
REFUSED = {
    "are recurrent": "no: recurrent layers",
    "keys and values of earlier": "no: layers share keys and values",
    "sliding window": "no: sliding windows",
    "no plain list of": "no: unusual decoder",
}
COLUMNS = ("signals of the tower", "follows the question by", "clips", "inside the language model", "vLLM (pictures)")


def facts(name: str) -> dict[str, str]:
    """By column, for one family of tests/families.py."""
    model = families.model_of(name)
    adapter = find(model)
    missing = [s for s in SIGNALS if s not in adapter.tapped_layers()]
    said = (
        "all" if not missing else "all but " + ", ".join(f"`{s}`" for s in missing),
        _question(model, adapter),
        "-" if families.FAMILIES[name].clip is None else "yes",
        _inside(model, families.prompts(name, [(1, 0)])),
        _vllm(model, adapter),
    )
    return dict(zip(COLUMNS, said))


def glance(names: list[str]) -> str:
    """As Markdown."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {label} | " + " | ".join(facts(n).values()) + " |" for n, label in LABELS.items() if n in names]
    return "\n".join(lines) + "\n"


def _question(model: Any, adapter: Any) -> str:
    if adapter.paired_text_tower:
        return "its text tower"
    try:
        FirstLayerRelevance(model).check()
    except FSRError:
        return "`embedding`"
    return "`first-layer`"


def _inside(model: Any, inputs: dict[str, Any]) -> str:
    """From the first layer on, behind those that take DeepStack features, or not at all."""
    for layer in (1, 2):
        try:
            with prune(model, FastV(layer=layer, keep=3)):
                model.generate(**inputs, max_new_tokens=2, do_sample=False)
        except (UnsupportedModelError, FSRError) as error:
            if "visual features by column" in str(error):
                continue
            return next(words for pattern, words in REFUSED.items() if re.search(pattern, str(error)))
        return "yes" if layer == 1 else "yes, behind DeepStack"
    raise ValueError(f"{type(model).__name__} has DeepStack features everywhere")


def _vllm(model: Any, adapter: Any) -> str:
    known = ARCHITECTURES.get(type(model).__name__)
    if known is None or (adapter.name == "mistral3" and "llava" in known):  # Pixtral checkpoints are of LLaVA's class
        return "-"
    return "opt-in" if model.config.model_type in UNSHOWN else "yes"
