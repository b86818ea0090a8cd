"""Qwen3.5 and 3.6, dense and mixture of experts, pruned inside vLLM. Videos are not pruned.

The tower is Qwen3-VL's without deepstack. Three of four decoder layers keep a recurrent state (Gated DeltaNet): they
read a shorter prompt as they read any other, and know no positions.
"""

from __future__ import annotations

from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeProcessingInfo,
    Qwen3_5ProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from fsr.serving.vllm.qwen3_vl import Processor, Qwen3Vision

__all__ = ["FSRQwen3_5ForConditionalGeneration", "FSRQwen3_5MoeForConditionalGeneration"]


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen3_5ProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class FSRQwen3_5ForConditionalGeneration(Qwen3Vision, Qwen3_5ForConditionalGeneration):
    """vLLM's Qwen3.5 with pruned pictures."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen3_5MoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class FSRQwen3_5MoeForConditionalGeneration(Qwen3Vision, Qwen3_5MoeForConditionalGeneration):
    """vLLM's Qwen3.5 mixture of experts with pruned pictures."""
