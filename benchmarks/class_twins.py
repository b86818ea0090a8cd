"""A tiny twin of any image-text-to-text class of Transformers, made from the defaults of its own config, and a prompt
with two pictures for it.

Sizes are told by the names of their fields; what a class needs besides is in `BESIDES` (both in class_sizes.py).
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

from class_sizes import BESIDES, CLIP, CLOSE, MERGE, OPEN, PAD, PATCH, PICTURE, SIDE, SIZES, VOCAB

__all__ = ["NAMES", "PICTURE", "clip_for", "inputs_for", "takes_features", "twin"]


def takes_features(cls: Any) -> bool:
    """Whether a class takes `mm_encoder_outputs`."""
    return "mm_encoder_outputs" in inspect.signature(cls.forward).parameters


def twin(model_type: str, seed: int = 0) -> Any:
    """A tiny random model of the class that `AutoModelForImageTextToText` maps the type to."""
    config = CONFIG_MAPPING[model_type]
    settings = _shrunk(config().to_dict(), BESIDES.get(model_type, {}), "")
    made = config.from_dict(settings)
    torch.manual_seed(seed)
    model = getattr(transformers, NAMES[model_type])(made).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # enough spread that tokens differ and attention is uneven
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    taken = [i for i in (PICTURE, CLIP, OPEN, CLOSE, 104) if i < VOCAB]
    model.generation_config.suppress_tokens = taken
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    return model


def _shrunk(settings: dict[str, Any], besides: dict[str, Any], path: str) -> dict[str, Any]:
    """The same settings, small."""
    depths = ("num_hidden_layers", "depth", "num_layers")
    old = next((settings[n] for n in depths if isinstance(settings.get(n), int)), 0)
    kinds = settings.get("layer_types") or []
    layers = [0, next((i for i, kind in enumerate(kinds) if kind != kinds[0]), 1)]
    small: dict[str, Any] = {}
    for name, value in settings.items():
        here = f"{path}{name}"
        if name == "per_layer_config":
            continue  # made anew from the rest
        if here in besides:
            small[name] = besides[here]
        elif isinstance(value, dict) and name.endswith("config"):
            small[name] = _shrunk(value, besides, f"{here}.")
        elif isinstance(value, dict) and "rope" in name:
            small[name] = _rope(value)
        elif isinstance(value, list | tuple) and old and len(value) == old:
            small[name] = [value[i] for i in layers]
        else:
            small[name] = next((v for pattern, v in SIZES if re.fullmatch(pattern, name)), value)
            if isinstance(value, bool) or (value is None and not name.endswith("token_id")):
                small[name] = value
            elif isinstance(value, list | tuple) and isinstance(small[name], int) and value:
                small[name] = [small[name]] * len(value)
    for name, value in besides.items():
        if name.rpartition(".")[0] == path.rstrip("."):
            small[name.rpartition(".")[2]] = value
    return small


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """Sections of a head of 8."""
    inner = {k: _rope(v) if isinstance(v, dict) else v for k, v in value.items()}
    if isinstance(section := inner.get("mrope_section"), list):
        inner["mrope_section"] = [1, 1, 2] if len(section) == 3 else [1] * 4
    return inner


# ------------------------------------------------------------------------------------------------------------- prompts


def inputs_for(model: Any, base: Any) -> dict[str, Any]:
    """Two pictures in one prompt, in the first form that the model's own `get_image_features` takes."""
    names = set(inspect.signature(base.get_image_features).parameters)
    failures = []
    for form in _forms(base, names):
        try:
            with torch.no_grad():
                output = base.get_image_features(**form, return_dict=True)
            pooled = getattr(output, "pooler_output", None)
            pooled = getattr(output, "last_hidden_state", None) if pooled is None else pooled
            pooled = output.deepstack_features[0][1] if pooled is None else pooled
            counts = [e.numel() // e.shape[-1] for e in pooled]
            break
        except Exception as error:  # the next form
            failures.append(f"{type(error).__name__}: {textwrap.shorten(str(error), 100, placeholder=' …')}")
    else:
        raise ValueError("; ".join(failures))
    ids = [1, 5]
    for n in counts:
        ids += [OPEN, *[model.config.image_token_id] * n, CLOSE, 9]
    ids = torch.tensor([[*ids, 30, 31]])
    given = {**form, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    forward = set(inspect.signature(type(model).forward).parameters)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in forward:
            given[name] = (ids == model.config.image_token_id).long()
    return given


def clip_for(model: Any, adapter: Any, picture: dict[str, Any]) -> dict[str, Any] | None:
    """A clip of two steps of 4 x 4 patches, each in a run of its own; None where the class takes none of this kind.

    picture: what `inputs_for` made, for the width of a patch.
    """
    token = adapter.placeholder_ids().get("video")
    if token is None or "video_grid_thw" not in adapter.feature_arguments("video"):
        return None
    noise = torch.Generator().manual_seed(8)
    form = {
        "pixel_values_videos": torch.randn((32, *picture["pixel_values"].shape[1:]), generator=noise),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }
    if "video_merge_sizes" in adapter.feature_arguments("video"):
        form["video_merge_sizes"] = torch.tensor([MERGE])
    with torch.no_grad():
        pooled = adapter.base.get_video_features(**form, return_dict=True).pooler_output
    half = sum(e.numel() // e.shape[-1] for e in pooled) // 2
    ids = torch.tensor([[1, 5, *[OPEN, *[token] * half, CLOSE, 9] * 2, 30, 31]])
    given = {**form, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inspect.signature(type(model).forward).parameters:
        given["mm_token_type_ids"] = 2 * (ids == token).long()
    return given


def _forms(base: Any, names: set[str]) -> Any:
    noise = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(shape, generator=noise)
    config = base.config.vision_config if getattr(base.config, "vision_config", None) is not None else base.config
    patch = getattr(config, "patch_size", PATCH)
    patch = patch if isinstance(patch, int) else patch[0]
    times = getattr(config, "temporal_patch_size", 1) or 1
    times = times if isinstance(times, int) else times[0]
    channels = getattr(config, "in_channels", getattr(config, "num_channels", 3))
    if "image_grid_thw" in names:
        grid = torch.tensor([[1, 4, 6], [1, 4, 4]])
        extra = {"image_merge_sizes": torch.tensor([MERGE, MERGE])} if "image_merge_sizes" in names else {}
        for width in dict.fromkeys(channels * n * patch**2 for n in (times, 1, 2)):
            yield {"pixel_values": draw(40, width), "image_grid_thw": grid, **extra}
        side = MERGE * patch
        for shape in (
            (40, side, side, channels),
            (40, channels, patch, patch),
            (40, channels, times, patch, patch),
            (40, times, patch, patch, channels),
        ):
            yield {"pixel_values": draw(*shape), "image_grid_thw": grid, **extra}
        return
    if "image_grid_hw" in names:
        yield {"pixel_values": draw(40, 3 * patch**2), "image_grid_hw": torch.tensor([[4, 6], [4, 4]])}
        return
    if "image_token_pooling" in names:
        blocks = torch.arange(32).view(2, 2, 2, 2, 2).transpose(2, 3).reshape(8, 4)
        yield {
            "pixel_values": draw(2, 16, 3 * patch**2),
            "image_token_pooling": blocks,
            "image_grids": torch.tensor([[2, 2, 0, 0]] * 2),
        }
        return
    if "image_position_ids" in names:
        at = torch.stack([torch.arange(4).repeat(4), torch.arange(4).repeat_interleave(4)], -1).expand(2, -1, -1)
        for width in dict.fromkeys((3 * patch**2, 3 * (patch * getattr(config, "pooling_kernel_size", 1)) ** 2)):
            yield {"pixel_values": draw(2, 16, width).sigmoid(), "image_position_ids": at}
        return
    side = getattr(getattr(config, "sam_config", config), "image_size", SIDE)
    side = side if isinstance(side, int) else side[0]
    sizes = {"image_sizes": torch.tensor([[side, side]] * 2)} if "image_sizes" in names else {}
    plain = draw(2, 3, side, side)
    if "spatial_shapes" in names:
        yield {
            "pixel_values": draw(2, 16, 3 * patch**2),
            "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        }
    if "high_res_pixel_values" in names:
        high = getattr(base.config, "high_res_vision_config", None)
        wide = getattr(high, "image_size", None) or 64
        yield {"pixel_values": plain, "high_res_pixel_values": draw(2, 3, wide, wide)}
    if "target_sizes" in names:
        yield {"pixel_values": draw(1, 3, patch, 2 * 64 * patch), "target_sizes": torch.tensor([[8, 8], [8, 8]])}
    if "pixel_attention_mask" in names:
        yield {"pixel_values": plain[:, None], "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool)}
    if "pixel_values_images" in names:
        yield {"pixel_values_images": plain}
    if getattr(config, "temporal_patch_size", None):  # one patch of a clip or picture after another
        yield {"pixel_values": draw(8, times, patch, patch, channels)}
    yield {"pixel_values": plain, **sizes}
    yield {"pixel_values": plain[:, None], **sizes}  # tiles of each picture
    yield {"pixel_values": plain[None], **sizes}  # pictures of each row
    yield {"pixel_values": draw(2, 2, 3, side, side), **sizes}  # the whole view and one tile
    yield {"pixel_values": draw(2, 16, 3 * patch**2)}  # patches of each picture
