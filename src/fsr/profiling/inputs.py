"""Synthetic prompts of the right shape: noise for pixels, random words, as many placeholders as the family's
processor writes.

Time does not depend on what is in the picture, so no processor and no file is needed to measure a model with random
weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fsr.errors import UsageError
from fsr.profiling.native import GRIDS, gemma4_size, grid_of, pixtral_size
from fsr.profiling.shapes import Visual, side

__all__ = ["synthetic"]


def synthetic(
    config: Any,
    picture: Visual,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    text: int = 80,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Keyword arguments for `model.generate` or `model.forward`: `batch` prompts of one picture and `text` text tokens.

    The picture stands between the first and second half of the text.

    Raises:
        UsageError: fewer than two text tokens.
    """
    if text < 2:
        raise UsageError(f"a prompt of {text} text tokens is no question: give at least 2.")
    generator = torch.Generator().manual_seed(seed)
    family, v = config.model_type, config.vision_config
    token = int(config.image_token_id)
    words = torch.randint(10, min(token, config.get_text_config().vocab_size), (batch, text), generator=generator)
    cut = text // 2
    ids = torch.cat([words[:, :cut], torch.full((batch, picture.tokens), token), words[:, cut:]], dim=1)
    out: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    size = size or (672, 672)
    if family in GRIDS:
        out["pixel_values"] = torch.randn(batch * picture.patches, picture.patch_inputs, generator=generator)
        out["image_grid_thw"] = torch.tensor([grid_of(config, size)] * batch)
        out["mm_token_type_ids"] = (ids == token).long()
    elif v.model_type == "pixtral":
        height, width = pixtral_size(config, size)
        out["pixel_values"] = torch.randn(batch, v.num_channels, height, width, generator=generator)
        out["image_sizes"] = torch.tensor([[height, width]] * batch)
    elif family == "gemma4":
        down, across, padded = gemma4_size(config, size)
        y, x = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
        places = torch.full((padded, 2), -1)
        places[: down * across] = torch.stack([x, y], dim=-1).view(-1, 2)
        out["pixel_values"] = torch.rand(batch, padded, picture.patch_inputs, generator=generator)
        out["image_position_ids"] = places.repeat(batch, 1, 1)
        out["mm_token_type_ids"] = (ids == token).long()
    else:
        count, edge = len(picture.sequences), side(v.image_size)
        shape: tuple[int, ...] = (batch * count, v.num_channels, edge, edge)
        if family in ("llava_next", "llava_onevision", "llava_next_video"):
            shape = (batch, count, *shape[1:])
            out["image_sizes"] = torch.tensor([size] * batch)
        elif family in ("smolvlm", "idefics3"):
            shape = (batch, count, *shape[1:])
        out["pixel_values"] = torch.randn(shape, generator=generator)
        if family == "gemma3":
            out["token_type_ids"] = (ids == token).long()
    out["pixel_values"] = out["pixel_values"].to(dtype)
    return {name: value.to(device) for name, value in out.items()}
