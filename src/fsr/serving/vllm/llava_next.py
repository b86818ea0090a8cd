"""LLaVA-NeXT, pruned inside vLLM: tiles, unpadding and newlines by the functions that the features go through."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, get_anyres_image_grid_shape
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems

from fsr.adapters.base import Adapter
from fsr.adapters.llava_next import LlavaNextAdapter
from fsr.serving.vllm.llava import FLAT_TOWER, LlavaVision
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.vision import view

__all__ = ["FSRLlavaNextForConditionalGeneration", "Newlines", "TiledVision"]


class Newlines:
    """Mixin: how many tokens of a picture are newlines."""

    info: Any

    def structural(self, mm_items: Any, index: int) -> int:
        """Newlines: one per row of the unpadded canvas."""
        info = self.info
        encoder = info.get_vision_encoder_info()
        size = mm_items.get_items("image", ImageProcessorItems).get_image_size(index)
        rows, cols = get_anyres_image_grid_shape(
            (size.height, size.width), info.get_hf_config().image_grid_pinpoints, encoder.get_image_size()
        )
        _, newlines = info._get_num_unpadded_features(
            original_height=size.height,
            original_width=size.width,
            npatches=encoder.get_patch_grid_length(),
            num_patch_height=rows,
            num_patch_width=cols,
        )
        return int(newlines)


class TiledVision(LlavaVision):
    """Pictures of several tiles: processed together, they come padded to the same number.

    packer: the Transformers model whose packing function is used, for channels instead of features.
    """

    packer: ClassVar[Any]
    image_newline: Any

    def fsr_view(self) -> Any:
        """The tower, and packing with this model's config."""
        shown = view(self.config, self.vision_tower.vision_model, image_newline=self.image_newline)
        shown.model.pack_image_features = partial(self.packer.pack_image_features, shown.model)
        return shown

    def unpadded(self, pictures: dict[str, Any]) -> dict[str, Any]:
        """Each with its own tiles."""
        adapter: Any = self.adapter_class(self.fsr_view())
        counts = adapter.tile_counts(pictures)
        return {**pictures, "pixel_values": [p[:n] for p, n in zip(pictures["pixel_values"], counts)]}


class Processor(Newlines, PrunedProcessing, LlavaNextMultiModalProcessor):
    """The stock processor with fewer placeholders."""

    adapter_class: ClassVar[type[Adapter]] = LlavaNextAdapter


@MULTIMODAL_REGISTRY.register_processor(Processor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class FSRLlavaNextForConditionalGeneration(TiledVision, LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT with pruned pictures."""

    adapter_class: ClassVar[type[Adapter]] = LlavaNextAdapter
    packer: ClassVar[Any] = LlavaNextModel
    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | FLAT_TOWER
