"""What a call may not bring along: inputs that could not be pruned, told before the vision tower runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Adapter
from fsr.adapters.containers import is_pruned
from fsr.errors import FeatureError, UsageError
from fsr.methods.picture_budgets import Shape
from fsr.pipeline.generate import settings
from fsr.pipeline.kv_cache import cache_in, is_empty
from fsr.pipeline.shorten import inferred_mask

__all__ = ["check_pictures", "ids_and_mask", "picture_shapes", "refuse_encoded", "refuse_unpruned"]


def refuse_encoded(inputs: Mapping[str, Any]) -> None:
    """Refuse pictures that come as features or inside embeddings: nothing could be chosen from them.

    Raises:
        UsageError: `mm_encoder_outputs` or `inputs_embeds` are given.
    """
    if inputs.get("mm_encoder_outputs") is not None:
        raise UsageError(
            "mm_encoder_outputs hold pictures that were encoded before, which carry no scores to prune by: pass the "
            "pixels (pixel_values), or use encode() and prepare(..., encoded=...)."
        )
    if inputs.get("inputs_embeds") is not None:
        raise UsageError(
            "inputs_embeds may hold pictures that nobody pruned: pass input_ids, and the pixels with them."
        )


def refuse_unpruned(adapter: Adapter, inputs: Mapping[str, Any], where: str = "", call: str = "forward") -> None:
    """Refuse a call without pixels that would take whole pictures past pruning.

    Text passes, and so do steps from a filled KV cache and what `prepare` made. where: added to the reason. call: which
    call this is; `generate` is given the whole prompt again behind a cache, and cuts it itself.

    Raises:
        UsageError, FeatureError: features of whole pictures, embeddings in place of ids, placeholders without pixels.
    """
    outputs, ids = inputs.get("mm_encoder_outputs"), inputs.get("input_ids")
    if outputs is not None and is_pruned(outputs):
        return
    try:
        if outputs is not None or (ids is None and is_empty(cache_in(inputs))):
            refuse_encoded(inputs)
        if isinstance(ids, Tensor):
            held = 0 if is_empty(cache_in(inputs)) else int(cache_in(inputs).get_seq_length())
            new = ids[:, held:] if call == "generate" else ids
            if not held or new.shape[-1] > 1:  # steps of one token do not wait for the device
                check_pictures(adapter, new, ())
    except (UsageError, FeatureError) as error:
        raise type(error)(f"{error} ({where})" if where else str(error)) from None


def check_pictures(adapter: Adapter, ids: Tensor, carried: Collection[str]) -> None:
    """Refuse prompts that speak of pictures which do not come along.

    carried: modalities whose pixels (or features of our own) the call brings.

    Raises:
        FeatureError: placeholders without pixels.
    """
    tokens = adapter.placeholder_ids()
    filled = {tokens[m] for m in tokens if m in carried}
    for modality, token in tokens.items():
        if token not in filled and bool((count := (ids == token).sum()) > 0):
            raise FeatureError(
                f"the prompt has {int(count)} {modality} placeholders and no pixels come with it: pass all that the "
                "processor returned."
            )


def ids_and_mask(adapter: Adapter, inputs: Mapping[str, Any], call: str) -> tuple[Tensor, Tensor]:
    """`input_ids` [B, L] and a mask of the same shape (the one that the model itself would infer, if none is given).

    Raises:
        UsageError: no ids, or a mask of another shape.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise UsageError("pruning shortens `input_ids` [B, L], which this call lacks: pass the processor's output.")
    if mask is None:
        if call == "forward":
            return ids, torch.ones_like(ids)
        setting = settings(adapter.model, dict(inputs))
        eos = setting("eos_token_id")
        ends = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
        pad = setting("pad_token_id")
        return ids, inferred_mask(ids, None if pad is None else int(pad), ends)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise UsageError("pruning needs the 2-D `attention_mask` [B, L] of the processor, not a prepared one.")
    return ids, mask


def picture_shapes(adapter: Adapter, inputs: Mapping[str, Any], ids: Tensor) -> list[Shape] | None:
    """What the pictures of a call will be, in prompt order, before the tower has seen them.

    None where only the tower can tell (tiles, clips), and where prompt and pixels do not belong together, which is said
    later.
    """
    parts = adapter.apart(inputs)
    token = adapter.placeholder_ids().get("image")
    if not parts or token is None or any("image_sizes" in part for part in parts):
        return None
    total = int((ids == token).sum())
    grids = [part["image_grid_thw"][0].tolist() if "image_grid_thw" in part else None for part in parts]
    patches = [1 if grid is None else grid[0] * grid[1] * grid[2] for grid in grids]
    each, rest = divmod(sum(patches), total) if grids[0] is not None and total else divmod(total, len(parts))
    if rest or not each:
        return None
    found = []
    for part, grid, count in zip(parts, grids, patches):
        if grid is not None:  # `each` patches are merged into one token
            merge = isqrt(each)
            found.append(Shape(count // each, (grid[1] // merge, grid[2] // merge) if grid[0] == 1 else None))
            continue
        side = getattr(adapter.model.config.vision_config, "patch_size", 0)
        rows, columns = (n // side if isinstance(side, int) and side else 0 for n in part["pixel_values"].shape[-2:])
        found.append(Shape(each, (rows, columns) if rows * columns == each else None))
    return found
