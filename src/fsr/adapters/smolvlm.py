"""SmolVLM and Idefics3: tiles of one picture in placeholder runs of their own, pooled jointly; pixel shuffle in the
connector.

The prompt names each tile (`<fake><row_1_col_2> ... `, the whole view last: `<fake><global-img> ...<fake>`), with a
line break after each row of tiles. Pictures and their grids are read off that frame without knowing any token by name:
the label before the last run of a prompt is that of a whole view.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels, Layout, PackedAdapter, centres, placeholder_runs
from fsr.adapters.registry import register
from fsr.errors import FeatureError, counted

__all__ = ["SmolVLMAdapter", "tile_grids"]


@register
class SmolVLMAdapter(PackedAdapter):
    """Video frames are pictures of their own, as in the prompt."""

    name = "smolvlm"
    model_types = frozenset({"smolvlm", "idefics3"})
    paired_text_tower = False

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Crops in raster order, then the whole view (tile 0)."""
        pixels = self._tiles(inputs)
        high, wide = self.patch_size
        whole_y, whole_x = centres(pixels.shape[-2] // high, pixels.shape[-1] // wide, pixels.device)
        ys, xs, tiles = [], [], []
        for rows, cols in tile_grids(inputs["input_ids"], self.model.config.image_token_id):
            for number in range(rows * cols):
                ys.append((number // cols + whole_y) / rows)
                xs.append((number % cols + whole_x) / cols)
                tiles.append(number + 1)
            ys.append(whole_y)
            xs.append(whole_x)
            tiles.append(0)
        if len(tiles) != len(pixels):
            raise FeatureError(
                f"the prompt has places for {counted(len(tiles), 'tile')}, of which {len(pixels)} came: make prompt "
                "and pixels with the same processor call (tiles of exact zeros count as padding: normalise a black "
                "picture)."
            )
        tile = torch.tensor(tiles, device=pixels.device)
        return Layout(torch.stack(ys), torch.stack(xs), tile, torch.zeros_like(tile))

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The connector's own `pixel_shuffle` puts the channels of neighbouring patches side by side: [N, scale^2,
        C]."""
        connector = self.base.connector
        shuffled = connector.pixel_shuffle(channels.value, connector.scale_factor)
        tokens = shuffled.unflatten(-1, (-1, channels.value.shape[-1]))
        grids = tile_grids(inputs["input_ids"], self.model.config.image_token_id)
        return [group.flatten(0, 1) for group in tokens.split([r * c + 1 for r, c in grids])]

    def _tiles(self, inputs: Mapping[str, Any]) -> Tensor:
        """The tiles that the model encodes: those that are no batch padding (all zero)."""
        mask = inputs.get("pixel_attention_mask")
        real = (inputs["pixel_values"].flatten(0, 1) != 0).flatten(1).any(1)
        if mask is not None and not bool(mask.flatten(0, 1)[real].all()):
            raise FeatureError(
                "tiles with padding inside cannot be pruned: use this model's processor, which makes square tiles."
            )
        return inputs["pixel_values"].flatten(0, 1)[real]


def tile_grids(ids: Tensor, token: int) -> list[tuple[int, int]]:
    """Rows and columns of the crops of every picture in scatter order; (0, 0) for pictures that are a whole view
    only."""
    grids: list[tuple[int, int]] = []
    for row in range(len(ids)):
        runs = [(start, end) for _, start, end in placeholder_runs(ids[row : row + 1], token)]
        if not runs:
            continue
        text = ids[row].tolist()
        last, end = runs[-1]
        named = last > 1 and end < len(text) and text[end] == text[last - 2]
        gaps = [after[0] - before[1] for before, after in pairwise(runs)]
        crops = lines = 0
        for i, (start, _) in enumerate(runs):
            crop = named and start > 1 and text[start - 2] == text[last - 2] and text[start - 1] != text[last - 1]
            if crop:
                crops += 1
                lines += int(gaps[i] > 2)  # inside a line two tokens stand between crops, at its end a break as well
                continue
            if crops and (not lines or crops % lines):
                raise FeatureError(
                    f"{crops} crops of a picture stand in {lines} lines: the prompt is not this family's."
                )
            grids.append((lines, crops // lines) if crops else (0, 0))
            crops = lines = 0
    return grids
