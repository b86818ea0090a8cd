"""LLaVA-OneVision, pruned inside vLLM: tiles, unpadding, shrinking and newlines by the functions that the features go
through. Videos are not pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fsr.adapters.base import Adapter
from fsr.adapters.llava_onevision import LlavaOnevisionAdapter
from fsr.serving.vllm.llava import FLAT_TOWER
from fsr.serving.vllm.llava_next import Newlines, TiledVision
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.taps import Watched
from fsr.serving.vllm.vision import Seen

__all__ = ["FSRLlavaOnevisionForConditionalGeneration"]


class Processor(Newlines, PrunedProcessing, LlavaOnevisionMultiModalProcessor):
    """The stock processor with fewer placeholders for pictures."""

    adapter_class: ClassVar[type[Adapter]] = LlavaOnevisionAdapter


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=LlavaOnevisionProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class FSRLlavaOnevisionForConditionalGeneration(TiledVision, LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with pruned pictures."""

    adapter_class: ClassVar[type[Adapter]] = LlavaOnevisionAdapter
    packer: ClassVar[Any] = LlavaOnevisionModel
    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | FLAT_TOWER

    def seen_as(self, features: Sequence[Tensor], seen: Watched, given: Mapping[str, Any]) -> Seen:
        """vLLM packs by this ratio, whatever the checkpoint says."""
        made = super().seen_as(features, seen, given)
        return replace(made, inputs={**made.inputs, "vision_aspect_ratio": "anyres_max_9"})
