"""Mistral 3, Ministral 3, Mistral Small 3.x and Pixtral: pictures of any size packed into one sequence, m x m patches
merged (m = 1 in Pixtral).

The prompt ends every row of a picture with a text token ([IMG_BREAK], [IMG_END]), so the placeholders of one picture
are several runs. The breaks are text and stay: a prompt keeps as many of them as its pictures have rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels, Layout, PackedAdapter, centres
from fsr.adapters.registry import register

__all__ = ["Mistral3Adapter"]


@register
class Mistral3Adapter(PackedAdapter):
    """The grid of a picture is its size in `image_sizes` over the patch; the merger drops what is left at the edges."""

    name = "mistral3"
    model_types = frozenset({"mistral3", "mistral_large4", "lighton_ocr"})
    paired_text_tower = False

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Pixtral checkpoints say `llava` and have a Pixtral tower."""
        config: Any = getattr(model, "config", None)
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        return super().matches(model) or (getattr(config, "model_type", None) == "llava" and tower == "pixtral")

    @property
    def vision_tower(self) -> nn.Module:
        """LightOnOCR calls it an encoder."""
        return getattr(self.base, "vision_encoder", None) or super().vision_tower

    @property
    def merge(self) -> int:
        """Patches per side of a token."""
        return int(getattr(self.model.config, "spatial_merge_size", 1))

    def grids(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Rows and columns of patches of every picture."""
        high, wide = self.patch_size
        sizes = inputs.get("image_sizes")
        if sizes is None:  # pictures of one size without padding
            pixels = inputs["pixel_values"]
            sizes = [pixels.shape[-2:]] * len(pixels)
        return [(int(h) // high, int(w) // wide) for h, w in sizes]

    def hidden(self, output: Any, layer: int) -> Tensor:
        """[1, S, C], all pictures one after another."""
        state = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return state.detach()

    def wants_hidden_states(self, signals: frozenset[str], patch_layer: int) -> bool:
        """Recent releases return only the hidden states that the projector reads."""
        return "relevance" in signals and patch_layer != -1

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """One sequence: rasters one after another."""
        device = inputs["pixel_values"].device
        y, x = (torch.cat(v)[None] for v in zip(*(centres(r, c, device) for r, c in self.grids(inputs))))
        zero = torch.zeros_like(y, dtype=torch.long)
        return Layout(y, x, zero, zero)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The m^2 patches of every token, [N, m^2, C]."""
        grids, m = self.grids(inputs), self.merge
        pictures = channels.value[0].split([r * c for r, c in grids])
        packed = []
        for (rows, cols), value in zip(grids, pictures):
            whole = value.unflatten(0, (rows, cols))[: rows // m * m, : cols // m * m]
            blocks = whole.unflatten(1, (-1, m)).unflatten(0, (-1, m)).transpose(1, 2)
            packed.append(blocks.flatten(2, 3).flatten(0, 1))
        return packed
