"""A tiny twin of any image-text-to-text class of Transformers, made from the defaults of its own config, and a prompt
with two pictures for it.

Sizes are told by the names of their fields (`SIZES`); what a class needs besides is in `BESIDES`, one line each.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

__all__ = ["NAMES", "PICTURE", "clip_for", "inputs_for", "takes_features", "twin"]

VOCAB, PAD, PICTURE, CLIP, OPEN, CLOSE = 128, 0, 100, 101, 102, 103
SIDE, PATCH, MERGE = 32, 8, 2
SIZES = [  # the first pattern that a field's whole name matches
    (r".*vocab_size(_per_layer_input)?", VOCAB),
    (r"num_hidden_layers|depth|num_layers|n_layers?|(en|de)coder_layers|num_encoder_layers|num_hidden_layers_\w+", 2),
    (r"(encoder_|decoder_|vision_)?(num_attention_heads|num_heads|n_heads?|attention_heads)", 4),
    (r"num_(global_)?(key_value|kv)_heads|linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"(\w+_)?head_dim|qk_\w+_dim|v_head_dim", 8),
    (r"\w*lora_rank", 16),
    (r"hidden_size_per_layer_input", 8),
    (r"\w*(intermediate_size|ffn_dim|mlp_dim|inner_dim|ffn_hidden_size|intermediate_dim)", 64),
    (r"(\w+_)?(hidden_size|d_model|embed_dim|dim|width|hidden_dim|output_dim|out_dim|proj_dims|embedding_dim)", 32),
    (r"\w*image_size|img_size", SIDE),
    (r"\w*patch_size(?<!temporal_patch_size)", PATCH),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|top_k_experts|moe_k|moe_topk|moe_top_k", 2),
    (r"n_group|topk_group", 1),
    (r"num_position_embeddings|position_embedding_size", 64),
    (r"max_position_embeddings", 512),
    (r"sliding_window", 64),
    (r"fullatt_block_indexes", [1]),
    (r"image_token_(id|index)|im(age|g)_patch_id|image_patch_token_id", PICTURE),
    (r"video_token_(id|index)", CLIP),
    (r"(vision|image)_start_token_id|boi_token_(id|index)", OPEN),
    (r"(vision|image)_end_token_id|eoi_token_(id|index)", CLOSE),
    (r"audio_token_(id|index)", 104),
    (r"pad_token_id", PAD),
    (r"bos_token_id", 1),
    (r"eos_token_id", None),
]
# Fields that the rules above get wrong for a class, by the dotted path of the config that holds them.
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
HALF = {**MROPE, "partial_rotary_factor": 1.0}
CODE = 105  # the first of 16 codes of a picture, where a picture is a row of codes
CODES = dict(base_channels=32, latent_channels=32, embed_dim=32, num_res_blocks=1)
BESIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "glm_ocr": {"text_config.rope_parameters": HALF},
    "glm5_next": {"text_config.num_key_value_heads": 4, "text_config.qk_rope_head_dim": 0},
    "paddleocr_vl": {"text_config.rope_parameters": MROPE},
    "granite_docling": {"vision_config.image_size": 4 * SIDE},
    "step3p7": {"vision_config.image_size": 4 * SIDE, "text_config.sliding_window": 64},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "cohere_compass": {
        "text_config.layer_types": ["full_attention", "sliding_attention"],
        "text_config.rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE},
    },
    "llama4": {"vision_config.intermediate_size": 128},
    "molmo2": {
        "adapter_config.vision_feature_layer": [-1, -2],
        "vision_config.image_size": [32, 32],
        "vision_config.num_position_embeddings": 16,
    },
    "dots3_note": {"text_config.num_key_value_heads": 4, "audio_config.adapter_input_size": 32},
    "hunyuan_vl": {"text_config.rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}, "text_config.head_dim": 8},
    "gemma4_unified": {
        "vision_config": dict(
            patch_size=8, pooling_kernel_size=1, mm_embed_dim=32, mm_posemb_size=64, output_proj_dims=32
        ),
        "audio_config": None,
    },
    "qwen4_exp": {
        "text_config.rope_parameters": MROPE,
        "text_config.indexer_n_heads": 4,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 8,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
    },
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "ernie4_5_vl_moe": {"text_config.moe_intermediate_size": [64, 64], "text_config.rope_parameters": MROPE},
    "emu3": {
        "vocabulary_map": {
            "<image>": PICTURE,
            "<|extra_200|>": CODE + 16,
            **{f"<|visual token {i:06d}|>": CODE + i for i in range(16)},
        },
        "vq_config": {**CODES, "codebook_size": 16, "channel_multiplier": [1, 1, 1], "hidden_size": 32},
    },
    "chameleon": {
        "vocabulary_map": {
            "<image>": PICTURE,
            **{"IMGIMG" + "".join(chr(65 + int(d)) for d in str(i)) + "Z": CODE + i for i in range(16)},
        },
        "vq_config": {**CODES, "num_embeddings": 16, "channel_multiplier": [1, 1, 1, 1], "resolution": SIDE},
    },
    "apertus1p5": {
        "image_token_offset": CODE,
        "audio_token_offset": CODE + 16,
        "vision_config": {
            **CODES, "codebook_size": 16, "channel_multiplier": [1, 1, 1], "resolution": SIDE, "attn_resolutions": [8]
        },
        "audio_config.codebook_size": 4,
    },
    "got_ocr2": {"vision_config.image_size": 2 * SIDE},
    "pp_chart2table": {"vision_config.image_size": 2 * SIDE},
    "fast_vlm": {
        "vision_config.architecture": "test_convnext",
        "vision_config.hidden_size": 64,
        "vision_config.model_args": None,
        "vision_config.image_size": 4 * SIDE,
    },
    "perception_lm": {
        "vision_config.architecture": "test_vit",
        "vision_config.model_args": {"img_size": [SIDE, SIDE], "embed_dim": 64, "depth": 2, "patch_size": 8},
    },
    "kimi_k25": {
        "vision_config.pos_emb_height": 8,
        "vision_config.pos_emb_width": 8,
        "text_config.num_key_value_heads": 4,
    },
    "mistral_large4": {"text_config.num_key_value_heads": 4},
    "deepseek_ocr2": {
        "vision_config.sam_config.downsample_channels": [32, 32],
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
        "text_config.n_group": 1,
        "text_config.topk_group": 1,
    },
    "deepseek_vl_hybrid": {"high_res_vision_config.global_attn_indexes": [0, 1]},
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "granite4_vision": {
        "deepstack_layer_map": [[-2, 0], [-1, 1]],
        "vision_config.hidden_size": 64,
        "downsample_rate": "2/4",
        "image_grid_pinpoints": [[SIDE, SIDE]],
    },
    "unlimited_ocr": {
        "vision_config.sam_config.downsample_channels": [32, 32],
        "vision_config.sam_config.image_size": 8 * SIDE,
        "vision_config.encoder_config.image_size": 8 * SIDE,
    },
}  # fmt: skip


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
            failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:90]}")
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
