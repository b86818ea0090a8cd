"""Qwen3-VL, dense and mixture of experts, pruned inside vLLM. Videos are not pruned.

Features of earlier layers of the tower (deepstack) travel behind a token's own as further channels; each kept token
keeps its own (where a method merges tokens, those of the row that absorbed the others).
"""

from __future__ import annotations

from typing import ClassVar

from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from fsr.adapters.base import Adapter
from fsr.adapters.qwen3_vl import Qwen3VLAdapter
from fsr.serving.vllm.mrope import MRopeVision
from fsr.serving.vllm.processing import PrunedProcessing

__all__ = ["FSRQwen3VLForConditionalGeneration", "FSRQwen3VLMoeForConditionalGeneration", "Qwen3Vision"]


class Qwen3Vision(MRopeVision):
    """What the dense model and the mixture share."""

    adapter_class: ClassVar[type[Adapter]] = Qwen3VLAdapter
    norm_name: ClassVar[str] = "norm"

    @property
    def feature_width(self) -> int:
        """D: the channels that the language model reads as the token itself."""
        return int(self.config.vision_config.out_hidden_size)


class Processor(PrunedProcessing, Qwen3VLMultiModalProcessor):
    """The stock processor with fewer placeholders for pictures."""

    adapter_class: ClassVar[type[Adapter]] = Qwen3VLAdapter


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class FSRQwen3VLForConditionalGeneration(Qwen3Vision, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with pruned pictures."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class FSRQwen3VLMoeForConditionalGeneration(Qwen3Vision, Qwen3VLMoeForConditionalGeneration):
    """vLLM's Qwen3-VL mixture of experts with pruned pictures. (Its `__init__` passes the dense model's by: nothing
    here is set up there.)"""
