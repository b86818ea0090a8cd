"""What one picture (or clip) is to a model family: sequences in the vision tower, rows in the projector, tokens for
the language model.

Sizes come from the config; where a family cuts or resizes pictures by a rule, Transformers' own function is called.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fsr.errors import UnsupportedModelError, UsageError
from fsr.profiling.native import GRIDS, gemma4, glm, pixtral, qwen
from fsr.profiling.shapes import Visual, side

__all__ = ["FAMILIES", "Visual", "visual"]

VIDEO = frozenset({"llava_onevision", "llava_next_video"}) | GRIDS


def visual(config: Any, size: tuple[int, int] | None = None, frames: int = 0, tiles: int = 1) -> Visual:
    """What the visual side of one prompt costs.

    Args:
        config: a vision-language config of Transformers.
        size: height and width of the picture in pixels, for families that adapt to it (LLaVA-NeXT, OneVision, Qwen,
            GLM, Pixtral, Gemma 4); 672 x 672 if None.
        frames: frames of one clip instead of a picture (0: a picture), for families with video.
        tiles: crops per picture for families whose processor decides (InternVL, SmolVLM).

    Raises:
        UnsupportedModelError: the family is not known.
        UsageError: no clips of this family are counted, or the size fits no grid.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"no operation counts for model type {config.model_type!r}: known are {', '.join(sorted(FAMILIES))}."
        )
    if frames and config.model_type not in VIDEO:
        raise UsageError(f"no counts of clips for {config.model_type}: leave frames out.")
    size = size or (672, 672)
    found = family(config, size, frames, tiles)
    if found.tokens < 1:
        raise UsageError(f"nothing is left of a picture of {size[0]} x {size[1]} pixels: give another size.")
    return found


def _tower(config: Any, count: int, projector: tuple[tuple[int, int, int], ...], tokens: int, **more: Any) -> Visual:
    """A plain ViT on `count` square inputs."""
    v = config.vision_config
    patches = (side(v.image_size) // side(v.patch_size)) ** 2
    extra = int(v.model_type in ("clip_vision_model", "internvl_vision"))
    lengths = (patches + extra,) * count
    return Visual(
        sequences=lengths,
        windows=lengths,
        full_layers=v.num_hidden_layers,
        patches=patches * count,
        patch_inputs=v.num_channels * side(v.patch_size) ** 2,
        projector=projector,
        tokens=tokens,
        pooled=v.model_type == "siglip_vision_model" and v.vision_use_head,
        **more,
    )


def _two_layers(config: Any, rows: int) -> tuple[tuple[int, int, int], ...]:
    """LLaVA's projector; several feature layers are joined in front of it."""
    layers = config.vision_feature_layer
    width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    hidden = config.text_config.hidden_size
    return ((rows, width, hidden), (rows, hidden, hidden))


def _per_tile(config: Any) -> int:
    """Rows per tile that reach the projector: with "full", CLIP's [CLS] row as well."""
    v = config.vision_config
    n = (side(v.image_size) // side(v.patch_size)) ** 2
    clip = v.model_type == "clip_vision_model"
    return n + (clip and config.vision_feature_select_strategy == "full")


def _llava(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    if config.vision_config.model_type == "pixtral":
        return pixtral(config, size, frames, tiles)
    n = _per_tile(config)
    rows = math.isqrt(n)
    return _tower(config, 1, _two_layers(config, n), n, grid=(rows, rows) if rows * rows == n else None)


def _anyres(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    """LLaVA-NeXT and OneVision: the whole picture plus the tiles of the best grid, without padding, one newline per
    row."""
    if frames:
        return _video(config, frames)
    from transformers.models.llava_next.modeling_llava_next import (
        get_anyres_image_grid_shape,
        image_size_to_num_patches,
        unpad_image,
    )

    v = config.vision_config
    pins = [list(p) for p in config.image_grid_pinpoints]
    count = image_size_to_num_patches(size, pins, side(v.image_size))
    down, across = get_anyres_image_grid_shape(size, pins, side(v.image_size))
    n, grid = _per_tile(config), side(v.image_size) // side(v.patch_size)
    rows, cols = unpad_image(torch.empty(1, down * grid, across * grid, device="meta"), size).shape[1:]
    if config.model_type == "llava_onevision":
        ratio = math.sqrt(rows * cols / (int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * grid**2))
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
    return _tower(config, count, _two_layers(config, n * count), n + rows * (cols + 1))


def _video(config: Any, frames: int) -> Visual:
    grid = side(config.vision_config.image_size) // side(config.vision_config.patch_size)
    if config.model_type == "llava_next_video":  # pools before the projector, no newline
        n = (grid // config.spatial_pool_stride) ** 2 * frames
        return _tower(config, frames, _two_layers(config, n), n)
    n = math.ceil(grid / 2) ** 2 * frames + 1
    return _tower(config, frames, _two_layers(config, grid * grid * frames), n)


def _internvl(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    v, hidden = config.vision_config, config.text_config.hidden_size
    fold = int(1 / config.downsample_ratio)
    grid = side(v.image_size) // side(v.patch_size) // fold
    n = grid * grid * tiles
    maps = ((n, v.hidden_size * fold**2, hidden), (n, hidden, hidden))
    return _tower(config, tiles, maps, n, grid=(grid, grid) if tiles == 1 else None)


def _gemma3(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    n = config.mm_tokens_per_image
    grid = math.isqrt(n)
    return _tower(
        config, 1, ((n, config.vision_config.hidden_size, config.text_config.hidden_size),), n, grid=(grid, grid)
    )


def _paligemma(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    v = config.vision_config
    grid = side(v.image_size) // side(v.patch_size)
    return _tower(config, 1, ((grid * grid, v.hidden_size, v.projection_dim),), grid * grid, grid=(grid, grid))


def _smolvlm(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    v, fold = config.vision_config, config.scale_factor
    grid = side(v.image_size) // side(v.patch_size) // fold
    n = grid * grid * tiles
    maps = ((n, v.hidden_size * fold**2, config.text_config.hidden_size),)
    return _tower(config, tiles, maps, n, grid=(grid, grid) if tiles == 1 else None)


FAMILIES = {
    "llava": _llava,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "llava_next_video": _anyres,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "smolvlm": _smolvlm,
    "idefics3": _smolvlm,
    "mistral3": pixtral,
    "gemma4": gemma4,
    **{kind: glm if kind.startswith("glm") else qwen for kind in GRIDS},
}
