"""Models that no adapter knows by name whose pictures come with their grid (`image_grid_thw`): any size, packed into
one sequence, m x m patches merged.

Asked of the model itself at the first picture (`provenance`): whether the patches of a token follow one another or lie
in a raster. Everything else is refused. Positions come from the model's own function where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_position_ids

from fsr.adapters.base import Modality, TowerStates, Units
from fsr.adapters.generic import UnknownModel
from fsr.adapters.packing import Channels, Layout, PackedAdapter, centres
from fsr.errors import FeatureError, UsageError
from fsr.signals.tap import attention_layers

__all__ = ["GenericAxesAdapter", "GenericGridAdapter"]


class GenericGridAdapter(UnknownModel, PackedAdapter):
    """Positions count in one dimension."""

    name = "generic grid"
    announcement = (
        "no adapter knows this model: saliency is received attention over the picture's grid (generic grid adapter)"
    )

    @classmethod
    def matches(cls, model: Any) -> bool:
        """As for all, and `get_image_features` takes a grid."""
        return super().matches(model) and "image_grid_thw" in cls(model).feature_arguments("image")

    def tapped_layers(self) -> dict[str, int]:
        """Attention is only read where it is full, if the tower says where that is."""
        layers, depth = super().tapped_layers(), len(attention_layers(self.vision_tower))
        full = getattr(self.vision_tower, "fullatt_block_indexes", None) or range(depth)
        return {n: min(full, key=lambda i: (abs(i - layer % depth), i)) for n, layer in layers.items()}

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Checked first, see `UnknownModel`."""
        self.feature_output(modality, output)
        if self.model not in self._known:
            self._known[self.model] = self._order(modality, output, inputs)
        return super().units(modality, output, tower, inputs)

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Rows and columns in the tower's order."""
        order, m = self._known[self.model]
        thw = inputs["image_grid_thw"]
        ys, xs = [], []
        for t, h, w in thw.tolist():
            y, x = (v.repeat(t) for v in centres(h, w, thw.device))
            if order == "units":
                at = get_vision_position_ids(torch.tensor([[t, h, w]], device=thw.device), m).float() + 0.5
                y, x = at[:, 0] / h, at[:, 1] / w
            ys.append(y)
            xs.append(x)
        y, x = torch.cat(ys)[None], torch.cat(xs)[None]
        zero = torch.zeros_like(y, dtype=torch.long)
        return Layout(y, x, zero, zero)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The m^2 patches of every token, [N, m^2, C]."""
        order, m = self._known[self.model]
        thw = inputs["image_grid_thw"]
        packed = []
        for (t, h, w), value in zip(thw.tolist(), channels.value[0].split(thw.prod(-1).tolist())):
            if order == "units":
                packed.append(value.unflatten(0, (-1, m * m)))
                continue
            blocks = value.unflatten(0, (t, h // m, m, w // m, m)).transpose(2, 3)
            packed.append(blocks.flatten(3, 4).flatten(0, 2))
        return packed

    def hidden(self, output: Any, layer: int) -> Tensor:
        """[1, S, C] where the tower hands out its packed states as they are."""
        state = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return state.detach() if state.dim() == 3 else state.detach().unsqueeze(0)

    def _order(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> tuple[str, int]:
        """("units" or "raster", m).

        Raises:
            UnsupportedModelError: neither.
        """
        thw = inputs.get("image_grid_thw")
        if thw is None:
            raise FeatureError("pictures of any size need image_grid_thw: use the processor of this model.")
        patches, counts = thw.prod(-1).tolist(), [e.flatten(0, -2).shape[0] for e in output.pooler_output]
        total = sum(counts)
        m = isqrt(sum(patches) // total) if total else 0
        if not m or [p // m**2 for p in patches] != counts or any(s % m for s in thw[:, 1:].flatten().tolist()):
            raise self.refusal(f"grids of {patches} patches give {counts} tokens, not one for each m x m of them")
        owner = self.owners(modality, inputs).flatten()
        if len(owner) != sum(patches):
            raise self.refusal(f"its tower's states have {len(owner)} rows for {sum(patches)} patches")
        number = torch.arange(total)
        if torch.equal(owner, number.repeat_interleave(m * m)):
            return "units", m
        expected, start = [], 0
        for t, h, w in thw.tolist():
            tokens = torch.arange(t * h * w // m**2).view(t, h // m, w // m) + start
            expected.append(tokens.repeat_interleave(m, 1).repeat_interleave(m, 2).flatten())
            start += t * h * w // m**2
        if torch.equal(owner, torch.cat(expected)):
            return "raster", m
        raise self.refusal("its tower sorts patches in an order of its own")


class GenericAxesAdapter(GenericGridAdapter):
    """Positions have several axes and come from the model's own `get_rope_index`."""

    name = "generic grid, multi-axial"
    multi_axial = True
    position_policy = "original"

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """As the model itself would number the whole prompt, [R, B, L]."""
        if inputs.get("mm_token_type_ids") is None:
            raise UsageError("positions of several axes need mm_token_type_ids: pass all that the processor returned.")
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        positions, _ = self.base.get_rope_index(**{n: inputs[n] for n in names if inputs.get(n) is not None})
        return positions
