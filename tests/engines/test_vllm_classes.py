"""Every class of the plug-in as vLLM finds it, without an engine: also those that wait for a device."""

from __future__ import annotations

import importlib

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")

from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP

from fsr.serving.vllm import ARCHITECTURES, register
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.vision import PrunedVision

# vLLM serves InternVL's "-hf" checkpoints by this class.
STOCK = {"InternVLForConditionalGeneration": "InternS1ForConditionalGeneration"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_class_stands_in_front_of_the_engine_s_own(architecture):
    module, _, name = ARCHITECTURES[architecture].partition(":")
    cls = getattr(importlib.import_module(module), name)
    lineage = [c.__name__ for c in cls.__mro__]
    assert lineage.index(PrunedVision.__name__) < lineage.index(STOCK.get(architecture, architecture))
    factories = cls._processor_factory
    assert issubclass(factories.processor, PrunedProcessing)
    assert factories.processor.adapter_class.model_types == cls.adapter_class.model_types
    # The families answer all that is asked of them.
    for asked in ("signal_layers", "hidden_layers", "fsr_view", "tower_tokens", "part", "features_of", "seen_as"):
        assert getattr(cls, asked) is not getattr(PrunedVision, asked), asked


def test_what_vllm_settles_by_name_holds_for_ours():
    """Qwen3.5's cache dtype and Gemma 4's attention backend are looked up by the architecture's name."""
    register()
    assert {"FSR" + name for name in ARCHITECTURES} <= set(ModelRegistry.get_supported_archs())
    settled = [name for name in ARCHITECTURES if name in MODELS_CONFIG_MAP]
    assert {"Qwen3_5ForConditionalGeneration", "Gemma4ForConditionalGeneration"} <= set(settled)
    for name in settled:
        assert MODELS_CONFIG_MAP["FSR" + name] is MODELS_CONFIG_MAP[name]
