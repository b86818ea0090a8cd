"""InternVL 3 and 3.5: tiles of one picture are pooled jointly; 2 x 2 patches make one token (pixel shuffle).

The model gets tiles without their arrangement. Tiles belong to one picture when their placeholders stand in one run;
the last of several is the thumbnail (tile 0 here), and the grid of the others is the one whose mosaic looks most like
the thumbnail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels, Layout, PackedAdapter, centres, placeholder_runs
from fsr.adapters.registry import register
from fsr.errors import FeatureError, counted

__all__ = ["InternVLAdapter"]


@register
class InternVLAdapter(PackedAdapter):
    """Video frames are pictures of their own, as in the prompt."""

    name = "internvl"
    model_types = frozenset({"internvl"})
    paired_text_tower = False

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Crops in raster order, then the thumbnail."""
        pixels = inputs["pixel_values"]
        high, wide = self.patch_size
        whole_y, whole_x = centres(pixels.shape[-2] // high, pixels.shape[-1] // wide, pixels.device)
        ys, xs, tiles = [], [], []
        for group in pixels.split(self._tile_counts(inputs)):
            rows, cols = mosaic(group)
            for number in range(len(group)):
                crop = number < len(group) - 1
                ys.append((number // cols + whole_y) / rows if crop else whole_y)
                xs.append((number % cols + whole_x) / cols if crop else whole_x)
                tiles.append(number + 1 if crop else 0)
        tile = torch.tensor(tiles, device=pixels.device)
        return Layout(torch.stack(ys), torch.stack(xs), tile, torch.zeros_like(tile))

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The model's own `pixel_shuffle` puts the channels of 2 x 2 patches side by side: [N, 4, C]."""
        side = int(channels.value.shape[1] ** 0.5)
        shuffled = self.base.pixel_shuffle(
            channels.value.unflatten(1, (side, side)), scale_factor=self.model.config.downsample_ratio
        )
        tokens = shuffled.flatten(1, 2).unflatten(-1, (-1, channels.value.shape[-1]))
        return [group.flatten(0, 1) for group in tokens.split(self._tile_counts(inputs))]

    def _tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        config, pixels = self.model.config, inputs["pixel_values"]
        high, wide = self.patch_size
        area = (pixels.shape[-2] // high) * (pixels.shape[-1] // wide)
        per_tile = round(area * config.downsample_ratio**2)
        runs = [end - start for _, start, end in placeholder_runs(inputs["input_ids"], config.image_token_id)]
        if any(r % per_tile for r in runs) or sum(runs) != per_tile * len(pixels):
            raise FeatureError(
                f"the prompt has placeholder runs of {runs} for {counted(len(pixels), 'tile')} of {per_tile} tokens: "
                "make prompt and pixels with the same processor call."
            )
        return [r // per_tile for r in runs]


def mosaic(tiles: Tensor) -> tuple[int, int]:
    """(rows, columns) of the crops tiles[:-1] [T, 3, H, W] such that, put together, they look most like tiles[-1]."""
    crops, thumbnail = tiles[:-1].float(), tiles[-1].float()
    n = len(crops)
    shapes = [(r, n // r) for r in range(1, n + 1) if n % r == 0]
    if len(shapes) < 2:
        return shapes[0] if shapes else (1, 1)

    def error(shape: tuple[int, int]) -> float:
        rows, cols = shape
        together = crops.unflatten(0, shape).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        cells = (rows * 4, cols * 4)
        return float((adaptive_avg_pool2d(together, cells) - adaptive_avg_pool2d(thumbnail, cells)).pow(2).mean())

    return min(shapes, key=error)
