"""Gemma 3: a SigLIP raster averaged over blocks of patches (4 x 4 of 64 x 64) in the projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels
from fsr.adapters.paligemma import PaliGemmaAdapter
from fsr.adapters.registry import register

__all__ = ["Gemma3Adapter"]


@register
class Gemma3Adapter(PaliGemmaAdapter):
    """Crops of "pan and scan" are pictures of their own, as in the prompt."""

    name = "gemma3"
    model_types = frozenset({"gemma3"})
    forward_position_offset = 0

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The projector's own `avg_pool`."""
        projector = self.base.multi_modal_projector
        side = projector.patches_per_image
        planes = channels.value.transpose(1, 2).unflatten(2, (side, side))
        return list(projector.avg_pool(planes).flatten(2).transpose(1, 2))
