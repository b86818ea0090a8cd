"""PaliGemma: a SigLIP raster, one token per patch; positions count from 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels, Layout, PackedAdapter, centres
from fsr.adapters.registry import register

__all__ = ["PaliGemmaAdapter"]


@register
class PaliGemmaAdapter(PackedAdapter):
    """Row i of the features is patch i."""

    name = "paligemma"
    model_types = frozenset({"paligemma"})
    chunked_prefill = False  # the prefix is one bidirectional block
    forward_position_offset = 1
    paired_text_tower = False

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """A picture is one tile."""
        pixels = inputs["pixel_values"]
        high, wide = self.patch_size
        y, x = centres(pixels.shape[-2] // high, pixels.shape[-1] // wide, pixels.device)
        zero = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
        return Layout(y.expand(len(pixels), -1), x.expand(len(pixels), -1), zero, zero)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The linear projector moves nothing."""
        return list(channels.value)
