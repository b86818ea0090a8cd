"""A LLaVA whose tower gives NaN for pictures of one colour, as a vLLM plug-in: what only the engine can find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fsr.serving.vllm import register
from fsr.serving.vllm.llava import FSRLlavaForConditionalGeneration

__all__ = ["BlackFails", "install", "plugin"]


class BlackFails(FSRLlavaForConditionalGeneration):
    """Breaks after the tower, before tokens are chosen."""

    def features_of(self, given: Mapping[str, Any]) -> Sequence[Tensor]:
        """[N, D] per picture."""
        flat = [bool((p == p[..., :1, :1]).all()) for p in given["pixel_values"]]
        return [f + float("nan") if bad else f for f, bad in zip(super().features_of(given), flat)]


def plugin() -> None:
    """Called by vLLM in each of its processes."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    register()
    ModelRegistry.register_model("BlackFails", "black_fails:BlackFails")
    MODELS_CONFIG_MAP["BlackFails"] = MODELS_CONFIG_MAP["FSRLlavaForConditionalGeneration"]


def install(folder: Path) -> str:
    """Make it known as if it were installed; returns what PYTHONPATH needs."""
    told = folder / "black_fails-0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: black-fails\nVersion: 0\n", encoding="utf-8")
    (told / "entry_points.txt").write_text("[vllm.general_plugins]\nblack = black_fails:plugin\n", encoding="utf-8")
    return f"{folder}:{Path(__file__).resolve().parent}"
