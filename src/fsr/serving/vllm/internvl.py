"""InternVL 3 and 3.5 in Transformers' format ("-hf"), pruned inside vLLM: tiles of a picture are pruned together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.internvl.modeling_internvl import InternVLModel
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fsr.adapters.base import Adapter
from fsr.adapters.internvl import InternVLAdapter
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.taps import Watched
from fsr.serving.vllm.vision import PrunedVision, Seen, layer_numbers, requests_of, view

__all__ = ["FSRInternVLForConditionalGeneration"]


class Processor(PrunedProcessing, InternS1MultiModalProcessor):
    """The stock processor with fewer placeholders for pictures."""

    adapter_class: ClassVar[type[Adapter]] = InternVLAdapter


@MULTIMODAL_REGISTRY.register_processor(Processor, info=InternS1ProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder)
class FSRInternVLForConditionalGeneration(PrunedVision, InternS1ForConditionalGeneration):
    """vLLM's InternVL with pruned pictures; videos whole."""

    adapter_class: ClassVar[type[Adapter]] = InternVLAdapter
    config: Any
    vision_tower: Any

    def signal_layers(self) -> dict[str, int]:
        """As `InternVLAdapter` counts them: all layers exist."""
        depth = len(self.vision_tower.encoder.layer)
        return layer_numbers(depth, depth - 2)

    def hidden_layers(self) -> frozenset[int]:
        """The last one, after the tower's own norm."""
        return frozenset({-1})

    def attention(self, number: int) -> nn.Module:
        """[CLS] stands in front of every tile."""
        module: nn.Module = self.vision_tower.encoder.layer[number].attention.attn
        return module

    def watched_modules(self) -> dict[str, nn.Module]:
        """The tower, whose output the projector reads."""
        return {"tower": self.vision_tower}

    def fsr_view(self) -> Any:
        """Transformers' pixel shuffle, for channels instead of features."""
        shown = view(self.config, self.vision_tower)
        shown.model.pixel_shuffle = partial(InternVLModel.pixel_shuffle, shown.model)
        return shown

    def tower_tokens(self, given: Mapping[str, Any]) -> list[int]:
        """All tiles of each picture."""
        return [int(n) * self.num_image_token for n in given["image_num_patches"]]

    def part(self, given: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """Tiles of all pictures stand in one tensor."""
        counts = [int(n) for n in given["image_num_patches"]]
        tiles = slice(sum(counts[:start]), sum(counts[:stop]))
        return {
            **given,
            "pixel_values": given["pixel_values"][tiles],
            "image_num_patches": given["image_num_patches"][start:stop],
        }

    def features_of(self, given: Mapping[str, Any]) -> Sequence[Tensor]:
        """[N, D] per picture."""
        made = super().embed_multimodal(**given)
        return list(made)

    def seen_as(self, features: Sequence[Tensor], seen: Watched, given: Mapping[str, Any]) -> Seen:
        """Which tiles belong together is read off runs of placeholders, here written anew."""
        image = int(self.config.image_token_id)
        runs = [t for f in features for t in [image] * len(f) + [image + 1]]
        output = SimpleNamespace(pooler_output=list(features), last_hidden_state=seen.made["tower"])
        inputs = {"pixel_values": given["pixel_values"], "input_ids": torch.tensor([runs])}
        return Seen(output, inputs)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features [K, D] per picture."""
        requests = requests_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        names = ("pixel_values", "image_num_patches", "image_token_id")
        pictures = {name: kwargs[name] for name in names}
        return tuple(c.features for c in self.prune_pictures(pictures, requests))
