"""Qwen2-VL and Qwen2.5-VL: all pictures packed into one sequence, 2 x 2 patches merged, windows, three-dimensional
positions.

Inside the tower of Qwen2.5-VL merge units stand in window order. Scores are read there, averaged over each unit and put
back into raster order with the model's own window index; coordinates make the same round trip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels, Layout, PackedAdapter
from fsr.adapters.picture_inputs import by_grid
from fsr.adapters.registry import register
from fsr.errors import UsageError

__all__ = ["QwenVLAdapter"]


@register
class QwenVLAdapter(PackedAdapter):
    """A picture is one raster of merge units, a video one per temporal patch (`Geometry.frame`: a pair of frames)."""

    name = "qwen2-vl"
    model_types = frozenset({"qwen2_vl", "qwen2_5_vl"})
    position_policy = "original"
    paired_text_tower = False

    def apart(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See `Adapter.apart`."""
        return by_grid(self.vision_arguments(inputs))

    @property
    def full_attention_layers(self) -> list[int]:
        """Layers in which a patch sees its whole frame; in a windowed layer received attention sums to 1 per window."""
        return sorted(getattr(self.vision_tower, "fullatt_block_indexes", None) or range(self._depth))

    @property
    def saliency_layer(self) -> int:
        """The full-attention layer nearest to the second to last one."""
        return self._nearest(self._depth - 2)

    def tapped_layers(self) -> dict[str, int]:
        """As for other families, but attention is only read where it is full."""
        return {name: self._nearest(layer % self._depth) for name, layer in super().tapped_layers().items()}

    def positions(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Three-dimensional positions of the whole prompt, [3, B, L], by the model's own function (which writes
        nothing)."""
        if inputs.get("mm_token_type_ids") is None:
            raise UsageError(
                "three-dimensional positions need mm_token_type_ids: pass all that the processor returned."
            )
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        given = {n: inputs[n] for n in (*names, "attention_mask") if inputs.get(n) is not None}
        positions, _ = self.base.get_rope_index(**given)
        return positions

    def hidden(self, output: Any, layer: int) -> Tensor:
        """[1, S, C] in the tower's order."""
        state = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return state.detach().unsqueeze(0)

    def wants_hidden_states(self, signals: frozenset[str], patch_layer: int) -> bool:
        """Only the last one comes by itself."""
        return "relevance" in signals and patch_layer != -1

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Rows and columns from the model's own position function, in the tower's order."""
        thw = inputs[f"{modality}_grid_thw"]
        at = get_vision_position_ids(thw, self._merge).float()
        area = thw.prod(-1)
        height, width = (thw[:, i].repeat_interleave(area) for i in (1, 2))
        start = (area.cumsum(0) - area).repeat_interleave(area)
        frame = (torch.arange(len(at), device=at.device) - start) // (height * width)
        y, x = (at[:, 0] + 0.5) / height, (at[:, 1] + 0.5) / width
        y, x, frame = (self._into_windows(v, thw)[None] for v in (y, x, frame))
        return Layout(y, x, torch.zeros_like(frame), frame)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Merge units back in raster order, [N, merge^2, C] per picture or video."""
        thw = inputs[f"{modality}_grid_thw"]
        units = channels.value[0].unflatten(0, (-1, self._merge**2))
        if (index := self._window_index(thw)) is not None:
            units = units[torch.argsort(index)]
        return list(units.split((thw.prod(-1) // self._merge**2).tolist()))

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def _depth(self) -> int:
        return len(self.vision_tower.blocks)  # type: ignore[arg-type]

    @property
    def _merge(self) -> int:
        return int(self.vision_tower.spatial_merge_size)  # type: ignore[arg-type]

    def _nearest(self, layer: int) -> int:
        return min(self.full_attention_layers, key=lambda i: (abs(i - layer), i))

    def _window_index(self, thw: Tensor) -> Tensor | None:
        tower: Any = self.vision_tower
        if not hasattr(tower, "window_size"):
            return None
        index, _ = get_vision_window_index(
            thw, spatial_merge_size=self._merge, window_size=tower.window_size, patch_size=tower.patch_size
        )
        return index.to(thw.device)

    def _into_windows(self, value: Tensor, thw: Tensor) -> Tensor:
        index = self._window_index(thw)
        return value if index is None else value.unflatten(0, (-1, self._merge**2))[index].flatten()
