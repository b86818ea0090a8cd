"""The "any resolution" way of LLaVA-NeXT and its children: one view of the whole picture, then tiles of a larger
canvas, unpadded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from fsr.adapters.base import Modality
from fsr.adapters.llava import LlavaAdapter
from fsr.adapters.packing import WHOLE, Channels, Layout, PackedAdapter, Window, centres

__all__ = ["AnyresAdapter"]


class AnyresAdapter(PackedAdapter, LlavaAdapter):
    """Pictures through `pack_image_features`: newline rows come out as structural rows, cropped padding not at all."""

    @property
    def encoder_layer(self) -> int:
        """What the projector reads."""
        return self.feature_layer

    @property
    def side(self) -> int:
        """Patches per side of a tile."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Tiles per picture, the whole view included."""
        config = self.model.config
        return [
            int(image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))
            for size in inputs["image_sizes"]
        ]

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Tile 0 is the whole picture squeezed into a square; the others fill a canvas on which it keeps its shape. A
        frame is one tile."""
        if modality == "video":
            return self.frames_layout(inputs["pixel_values_videos"])
        config, device = self.model.config, inputs["pixel_values"].device
        whole_y, whole_x = centres(self.side, self.side, device)
        ys, xs, tiles = [], [], []
        grids: list[tuple[int, int] | None] = []
        windows: list[Window] = []
        for size, count in zip(inputs["image_sizes"], self.tile_counts(inputs)):
            ys.append(whole_y[None])
            xs.append(whole_x[None])
            rows = cols = 1
            if count > 1:
                rows, cols = get_anyres_image_grid_shape(
                    size, config.image_grid_pinpoints, config.vision_config.image_size
                )
                number = torch.arange(rows * cols, device=device)[:, None]
                ys.append((number // cols + whole_y) / rows)
                xs.append((number % cols + whole_x) / cols)
            tiles.append(torch.arange(count, device=device))
            grids.append((rows, cols) if count > 1 else None)
            windows.append(_window(size, rows, cols) if count > 1 else WHOLE)
        tile = torch.cat(tiles)
        return Layout(torch.cat(ys), torch.cat(xs), tile, torch.zeros_like(tile), grids, windows)

    def frames_layout(self, videos: Tensor) -> Layout:
        """videos: [V, T, 3, H, W], every frame a raster of its own."""
        count, frames = videos.shape[:2]
        y, x = (v.expand(count * frames, -1) for v in centres(self.side, self.side, videos.device))
        frame = torch.arange(frames, device=videos.device).repeat(count)
        return Layout(y, x, torch.zeros_like(frame), frame)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """`pack_image_features`, with a newline that is no patch (none where the model has none)."""
        tiles = channels.value.split(self.tile_counts(inputs))
        newline = channels.newline if self.base.image_newline is not None else None
        return self.pack_tiles(list(tiles), inputs, newline)

    def pack_tiles(self, tiles: list[Tensor], inputs: Mapping[str, Any], newline: Tensor | None) -> list[Tensor]:
        """The model's function with its own arguments."""
        strategy = self.model.config.vision_feature_select_strategy
        packed, _ = self.base.pack_image_features(tiles, inputs["image_sizes"], strategy, image_newline=newline)
        return packed


def _window(size: Tensor, rows: int, cols: int) -> Window:
    """Where the picture lies on a canvas of rows x cols square tiles: as large as fits, in the middle."""
    height, width = (float(s) for s in size)
    scale = min(cols / width, rows / height)
    y, x = height * scale / rows, width * scale / cols
    return (1 - y) / 2, (1 - x) / 2, (1 + y) / 2, (1 + x) / 2
