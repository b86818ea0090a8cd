"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, frames pooled by the model's resampler, no newlines in videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.anyres import AnyresAdapter
from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels
from fsr.adapters.registry import register
from fsr.errors import UnsupportedModelError

__all__ = ["LlavaNextVideoAdapter"]


@register
class LlavaNextVideoAdapter(AnyresAdapter):
    """A clip of T frames is one unit; `per="frame"` counts the budget by frames."""

    name = "llava-next-video"
    model_types = frozenset({"llava_next_video"})

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Frames through `vision_resampler`."""
        if modality == "image":
            return super().pack(modality, channels, inputs)
        resampler = self.base.vision_resampler
        if not isinstance(resampler.pool, torch.nn.AvgPool2d):
            raise UnsupportedModelError(
                f"frames are pooled by {type(resampler.pool).__name__}, which moves scores differently from features: "
                "only spatial_pool_mode='average' is supported."
            )
        pooled = resampler(channels.value)
        return list(pooled.unflatten(0, inputs["pixel_values_videos"].shape[:2]).flatten(1, 2))
