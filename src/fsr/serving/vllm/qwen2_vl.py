"""Qwen2-VL and Qwen2.5-VL, pruned inside vLLM. Videos are not pruned."""

from __future__ import annotations

from typing import ClassVar

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fsr.adapters.base import Adapter
from fsr.adapters.qwen2_vl import QwenVLAdapter
from fsr.serving.vllm.mrope import MRopeVision
from fsr.serving.vllm.processing import PrunedProcessing

__all__ = ["FSRQwen2VLForConditionalGeneration", "FSRQwen2_5_VLForConditionalGeneration"]


class Qwen2Processor(PrunedProcessing, Qwen2VLMultiModalProcessor):
    """The stock processor with fewer placeholders for pictures."""

    adapter_class: ClassVar[type[Adapter]] = QwenVLAdapter


class Qwen2_5Processor(PrunedProcessing, Qwen2_5_VLMultiModalProcessor):
    """The stock processor with fewer placeholders for pictures."""

    adapter_class: ClassVar[type[Adapter]] = QwenVLAdapter


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2Processor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class FSRQwen2VLForConditionalGeneration(MRopeVision, Qwen2VLForConditionalGeneration):
    """vLLM's Qwen2-VL with pruned pictures."""

    adapter_class: ClassVar[type[Adapter]] = QwenVLAdapter
    norm_name: ClassVar[str] = "ln_q"


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5Processor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class FSRQwen2_5_VLForConditionalGeneration(MRopeVision, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with pruned pictures."""

    adapter_class: ClassVar[type[Adapter]] = QwenVLAdapter
    norm_name: ClassVar[str] = "ln_q"
