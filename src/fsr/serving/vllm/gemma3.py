"""Gemma 3, pruned inside vLLM: a SigLIP raster averaged over blocks of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor, nn
from vllm.model_executor.models.gemma3_mm import (
    Gemma3DummyInputsBuilder,
    Gemma3ForConditionalGeneration,
    Gemma3MultiModalProcessor,
    Gemma3ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems

from fsr.adapters.base import Adapter
from fsr.adapters.gemma3 import Gemma3Adapter
from fsr.errors import UsageError
from fsr.serving.vllm.llava import FLAT_TOWER
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.taps import Watched
from fsr.serving.vllm.vision import PrunedVision, Seen, layer_numbers, requests_of, view

__all__ = ["FSRGemma3ForConditionalGeneration"]


class Processor(PrunedProcessing, Gemma3MultiModalProcessor):
    """The stock processor with fewer placeholders."""

    adapter_class: ClassVar[type[Adapter]] = Gemma3Adapter

    def structural(self, mm_items: Any, index: int) -> int:
        """None; crops of "pan and scan" would be pictures of their own, which the engine takes for one."""
        info: Any = self.info
        size = mm_items.get_items("image", ImageProcessorItems).get_image_size(index)
        crops = info.get_num_crops(
            image_width=size.width, image_height=size.height, processor=info.get_hf_processor(), mm_kwargs={}
        )
        if crops:
            raise UsageError("pictures in crops (do_pan_and_scan) cannot be pruned inside vLLM: leave it off.")
        return 0


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Gemma3ProcessingInfo, dummy_inputs=Gemma3DummyInputsBuilder)
class FSRGemma3ForConditionalGeneration(PrunedVision, Gemma3ForConditionalGeneration):
    """vLLM's Gemma 3 with pruned pictures."""

    adapter_class: ClassVar[type[Adapter]] = Gemma3Adapter
    hf_to_vllm_mapper = Gemma3ForConditionalGeneration.hf_to_vllm_mapper | FLAT_TOWER
    config: Any
    vision_tower: Any

    def signal_layers(self) -> dict[str, int]:
        """As `Gemma3Adapter` counts them: all layers exist."""
        depth = self.config.vision_config.num_hidden_layers
        return layer_numbers(depth, depth - 2)

    def hidden_layers(self) -> frozenset[int]:
        """The last one, after the tower's own norm."""
        return frozenset({-1})

    def attention(self, number: int) -> nn.Module:
        """SigLIP has no [CLS]."""
        module: nn.Module = self.vision_tower.vision_model.encoder.layers[number].self_attn.attn
        return module

    def watched_modules(self) -> dict[str, nn.Module]:
        """The tower, whose output the projector reads."""
        return {"tower": self.vision_tower}

    def fsr_view(self) -> Any:
        """The projector's average, for channels instead of features."""
        return view(self.config, self.vision_tower.vision_model, multi_modal_projector=self.multi_modal_projector)

    def tower_tokens(self, given: Mapping[str, Any]) -> list[int]:
        """All crops of each picture."""
        return [int(n) * int(self.config.mm_tokens_per_image) for n in given["num_patches"]]

    def part(self, given: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """Crops of all pictures stand in one tensor."""
        counts = [int(n) for n in given["num_patches"]]
        crops = slice(sum(counts[:start]), sum(counts[:stop]))
        return {"pixel_values": given["pixel_values"][crops], "num_patches": given["num_patches"][start:stop]}

    def features_of(self, given: Mapping[str, Any]) -> Sequence[Tensor]:
        """[N, D] per picture."""
        made = super().embed_multimodal(**given)
        return list(made)

    def seen_as(self, features: Sequence[Tensor], seen: Watched, given: Mapping[str, Any]) -> Seen:
        """A picture is one raster."""
        output = SimpleNamespace(pooler_output=list(features), last_hidden_state=seen.made["tower"])
        return Seen(output, {"pixel_values": given["pixel_values"]})

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features [K, D] per picture."""
        requests = requests_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        pictures = {name: kwargs[name] for name in ("pixel_values", "num_patches")}
        return tuple(c.features for c in self.prune_pictures(pictures, requests))
