"""What one picture is to families that take it at its own size: Qwen-VL, GLM-V, Pixtral and Mistral 3, Gemma 4.

Where a family resizes pictures by a rule, Transformers' own function is called, or the rule is written beside its name.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fsr.profiling.shapes import Visual, side

__all__ = ["GRIDS", "SOFT_TOKENS", "gemma4", "gemma4_size", "glm", "grid_of", "pixtral", "pixtral_size", "qwen"]

# Families whose pictures are (times, down, across) patches, merged before the language model.
GRIDS = frozenset(
    (
        "qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe glm4v glm4v_moe glm46v qwen2_5_omni_thinker "
        "qwen3_omni_moe_thinker"
    ).split()
)
# Gemma 4's budget of visual tokens per picture where the checkpoint's config names none.
SOFT_TOKENS = 280


def grid_of(config: Any, size: tuple[int, int], frames: int = 0) -> tuple[int, int, int]:
    """Times, rows and columns of patches: sides become multiples of patch * merge, frames go together in groups."""
    v = config.vision_config
    merge, together = v.spatial_merge_size, side(v.temporal_patch_size)
    down, across = (max(1, round(s / (side(v.patch_size) * merge))) * merge for s in size)
    return max(1, math.ceil(frames / together)), down, across


def qwen(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    """Qwen2-VL to Qwen3.6, pictures of Qwen-Omni: a merger for a projector (several with DeepStack); windows in 2.5."""
    v = config.vision_config
    times, down, across = grid_of(config, size, frames)
    merge = v.spatial_merge_size
    tokens = times * down * across // merge**2
    old = v.model_type == "qwen2_vl_vision"
    width = v.embed_dim if old else v.hidden_size
    wide, out = width * merge**2, v.hidden_size if old else v.out_hidden_size
    mergers = 1 + len(getattr(v, "deepstack_visual_indexes", ()))
    windows, full = None, v.depth
    if v.model_type in ("qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder"):
        from transformers.vision_utils import get_vision_window_index

        grid_thw = torch.tensor([[times, down, across]])
        _, bounds = get_vision_window_index(grid_thw, merge, v.window_size, side(v.patch_size))
        windows = tuple(int(n) for n in bounds.diff().tolist() if n)
        full = len(set(v.fullatt_block_indexes) & set(range(v.depth)))
    return _merged(config, (times, down, across), ((tokens, wide, wide), (tokens, wide, out)) * mergers, windows, full)


def glm(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    """GLM-4.1V, 4.5V, 4.6V: a convolution that merges, one map, and a gated block."""
    v = config.vision_config
    times, down, across = grid_of(config, size, frames)
    n, out, inner = times * down * across // v.spatial_merge_size**2, v.out_hidden_size, v.intermediate_size
    maps = ((n, v.hidden_size * v.spatial_merge_size**2, out), (n, out, out), *((n, out, inner),) * 2, (n, inner, out))
    return _merged(config, (times, down, across), maps, None, v.depth)


def _merged(
    config: Any,
    grid: tuple[int, int, int],
    projector: tuple[tuple[int, int, int], ...],
    windows: tuple[int, ...] | None,
    full: int,
) -> Visual:
    v, (times, down, across) = config.vision_config, grid
    merge = v.spatial_merge_size
    sequences = (down * across,) * times
    return Visual(
        sequences=sequences,
        windows=windows or sequences,
        full_layers=full,
        patches=times * down * across,
        patch_inputs=v.in_channels * side(v.temporal_patch_size) * side(v.patch_size) ** 2,
        projector=projector,
        tokens=times * down * across // merge**2,
        grid=(down // merge, across // merge) if times == 1 else None,
    )


def pixtral_size(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after the processor: at most `image_size` a side, then up to multiples of patch (* merge), as
    `get_resize_output_image_size` of Transformers' Pixtral has it."""
    v = config.vision_config
    step = side(v.patch_size) * getattr(config, "spatial_merge_size", 1)
    ratio = max(1.0, *(s / side(v.image_size) for s in size))
    down, across = (math.ceil(int(s / ratio) / step) * step for s in size)
    return down, across


def pixtral(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    """Mistral 3 (merges patches) and Pixtral-12B (does not). The text token that ends each row is no visual token."""
    v, hidden = config.vision_config, config.text_config.hidden_size
    merge = getattr(config, "spatial_merge_size", 1)
    down, across = (s // side(v.patch_size) for s in pixtral_size(config, size))
    n, d = down * across // merge**2, v.hidden_size
    layers = config.vision_feature_layer
    width = d * (1 if isinstance(layers, int) else len(layers))
    merger = ((n, d * merge**2, d),) if config.model_type == "mistral3" else ()
    return Visual(
        sequences=(down * across,),
        windows=(down * across,),
        full_layers=v.num_hidden_layers,
        patches=down * across,
        patch_inputs=v.num_channels * side(v.patch_size) ** 2,
        projector=(*merger, (n, width, hidden), (n, hidden, hidden)),
        tokens=n,
        grid=(down // merge, across // merge),
    )


def gemma4_size(config: Any, size: tuple[int, int]) -> tuple[int, int, int]:
    """Rows and columns of patches of the resized picture, and the rows of the padded one that the tower runs on."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

    v = config.vision_config
    padded = getattr(config, "vision_soft_tokens_per_image", SOFT_TOKENS) * v.pooling_kernel_size**2
    height, width = get_aspect_ratio_preserving_size(*size, v.patch_size, padded, v.pooling_kernel_size)
    return height // v.patch_size, width // v.patch_size, padded


def gemma4(config: Any, size: tuple[int, int], frames: int, tiles: int) -> Visual:
    """Gemma 4: the picture is fitted to its budget and padded up to it; pooling is a matrix product, in all rows."""
    v, pool = config.vision_config, config.vision_config.pooling_kernel_size
    down, across, padded = gemma4_size(config, size)
    n, soft = down * across // pool**2, padded // pool**2
    return Visual(
        sequences=(padded,),
        windows=(padded,),
        full_layers=v.num_hidden_layers,
        patches=padded,
        patch_inputs=3 * v.patch_size**2,
        projector=((soft, padded, v.hidden_size), (n, v.hidden_size, config.text_config.hidden_size)),
        tokens=n,
        grid=(down // pool, across // pool),
    )
