"""LLaVA-OneVision, pictures and videos: SigLIP tower, bilinear shrinking of large pictures and of every video frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsr.adapters.anyres import AnyresAdapter
from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels
from fsr.adapters.registry import register

__all__ = ["LlavaOnevisionAdapter"]


@register
class LlavaOnevisionAdapter(AnyresAdapter):
    """Frames are pooled by `apply_pooling`; one newline row ends each video. Several pictures in one prompt have one
    tile each."""

    name = "llava-onevision"
    model_types = frozenset({"llava_onevision"})

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """The same classes with `config.llava_video_pool` are LLaVA-Video."""
        return super().matches(model) and (getattr(model.config, "llava_video_pool", None) is None) == (
            cls is LlavaOnevisionAdapter
        )

    def wants_hidden_states(self, signals: frozenset[str], patch_layer: int) -> bool:
        """SigLIP's last hidden state went through its final norm: the ones before it must be asked for."""
        return "relevance" in signals

    def hidden(self, output: Any, layer: int) -> Tensor:
        """A state of the residual stream, never the normed last one."""
        return output.hidden_states[layer].detach()

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """One tile per picture in prompts with several."""
        counts = super().tile_counts(inputs)
        if (groups := inputs.get("batch_num_images")) is None:
            return counts
        alone = [int(n) == 1 for n in groups for _ in range(int(n))]
        return [count if single else 1 for count, single in zip(counts, alone)]

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Pictures as in LLaVA-NeXT; frames through `apply_pooling`, then one newline."""
        if modality == "image":
            return super().pack(modality, channels, inputs)
        pooled = self.base.apply_pooling(channels.value)
        clips = pooled.unflatten(0, inputs["pixel_values_videos"].shape[:2])
        return [torch.cat([clip.flatten(0, 1), channels.newline[None]]) for clip in clips]

    def pack_tiles(self, tiles: list[Tensor], inputs: Mapping[str, Any], newline: Tensor | None) -> list[Tensor]:
        """Shrinks beyond `anyres_max_9`."""
        ratio = inputs.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio
        packed, _ = self.base.pack_image_features(
            tiles, inputs["image_sizes"], image_newline=newline, vision_aspect_ratio=ratio
        )
        return packed
