"""Tiny random models of every family, built from configs in code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tiny

VOCAB, PAD, IMAGE, VIDEO, OPEN, CLOSE, BREAK = 80, 0, 70, 71, 72, 73, 74
LABELS = 60  # names of tiles: 60 is the whole view, 61 ... are crops
SIDE, PATCH = 32, 8  # 4 x 4 patches per tile


def text(**changes: Any) -> Any:
    return tiny.llama_config(vocab_size=VOCAB, **changes)


def clip_vision(**changes: Any) -> Any:
    from transformers import CLIPVisionConfig

    size = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    return CLIPVisionConfig(**{**size, "image_size": SIDE, "patch_size": PATCH, **changes})


def siglip_vision(**changes: Any) -> Any:
    from transformers import SiglipVisionConfig

    size = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    return SiglipVisionConfig(**{**size, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False, **changes})


def gemma_text(kind: str, **changes: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, pad_token_id=PAD, eos_token_id=None,
        bos_token_id=1, **changes,
    )  # fmt: skip


def made(cls: str, config: Any, attention: str, seed: int = 0) -> Any:
    import transformers

    config._attn_implementation = attention
    model = tiny.sharpen(getattr(transformers, cls)(config), seed)
    # A random model may write placeholders, which no real one does and no run without a cache survives.
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    model.generation_config.pad_token_id = PAD
    return model


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- the buil

PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
SIZES = [[40, 60], [64, 40], [30, 30]]


def _llava(attention: str) -> Any:
    from transformers import LlavaConfig

    config = LlavaConfig(
        vision_config=clip_vision(), text_config=text(), image_token_id=IMAGE, image_seq_length=16,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    return made("LlavaForConditionalGeneration", config, attention)


def _llava_next(attention: str) -> Any:
    from transformers import LlavaNextConfig

    config = LlavaNextConfig(
        vision_config=clip_vision(), text_config=text(), image_token_id=IMAGE, image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    return made("LlavaNextForConditionalGeneration", config, attention)


def _llava_next_video(attention: str) -> Any:
    from transformers import LlavaNextVideoConfig

    config = LlavaNextVideoConfig(
        vision_config=clip_vision(), text_config=text(), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-2, spatial_pool_mode="average", spatial_pool_stride=2,
    )  # fmt: skip
    return made("LlavaNextVideoForConditionalGeneration", config, attention)


def _onevision(attention: str) -> Any:
    from transformers import LlavaOnevisionConfig

    config = LlavaOnevisionConfig(
        vision_config=siglip_vision(), text_config=text(), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-1, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip
    return made("LlavaOnevisionForConditionalGeneration", config, attention)


def _qwen(version: str) -> Callable[[str], Any]:
    def build(attention: str) -> Any:
        import transformers

        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        language = dict(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, rope_parameters=rope, pad_token_id=PAD,
            bos_token_id=1, eos_token_id=None,
        )  # fmt: skip
        vision = dict(depth=4, num_heads=4, in_channels=3, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
        if version == "2":
            vision |= dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
        elif version == "2_5":
            vision |= dict(
                hidden_size=32, intermediate_size=48, out_hidden_size=32, window_size=16, tokens_per_second=2
            )
            vision |= dict(fullatt_block_indexes=[1, 3])
        else:
            vision |= dict(hidden_size=32, intermediate_size=48, out_hidden_size=32, num_position_embeddings=64)
            vision |= dict(deepstack_visual_indexes=[0, 2])
            language |= dict(head_dim=8)
        stem = {"2": "Qwen2VL", "2_5": "Qwen2_5_VL", "3": "Qwen3VL"}[version]
        config = getattr(transformers, f"{stem}Config")(
            text_config=language, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
            vision_start_token_id=OPEN, vision_end_token_id=CLOSE,
        )  # fmt: skip
        return made(f"{stem}ForConditionalGeneration", config, attention)

    return build


def internvl_vision() -> Any:
    from transformers import InternVLVisionConfig

    return InternVLVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=[SIDE, SIDE],
        patch_size=[PATCH, PATCH], use_qk_norm=True,
    )  # fmt: skip


def _internvl(attention: str) -> Any:
    from transformers import InternVLConfig

    config = InternVLConfig(
        vision_config=internvl_vision(), text_config=text(), image_token_id=IMAGE, downsample_ratio=0.5
    )
    return made("InternVLForConditionalGeneration", config, attention)


def _gemma3(attention: str) -> Any:
    from transformers import Gemma3Config

    config = Gemma3Config(
        vision_config=siglip_vision(patch_size=4), text_config=gemma_text("Gemma3TextConfig", query_pre_attn_scalar=8,
        sliding_window=64), image_token_id=IMAGE, mm_tokens_per_image=16, boi_token_index=OPEN, eoi_token_index=CLOSE,
    )  # fmt: skip
    return made("Gemma3ForConditionalGeneration", config, attention)


def _paligemma(attention: str) -> Any:
    from transformers import PaliGemmaConfig

    config = PaliGemmaConfig(
        vision_config=siglip_vision(projection_dim=32), text_config=gemma_text("GemmaConfig"), image_token_id=IMAGE,
        projection_dim=32,
    )  # fmt: skip
    return made("PaliGemmaForConditionalGeneration", config, attention)


def _tiled(stem: str) -> Callable[[str], Any]:
    def build(attention: str) -> Any:
        import transformers

        size = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        vision = getattr(transformers, f"{stem}VisionConfig")(**size, image_size=SIDE, patch_size=PATCH)
        config = getattr(transformers, f"{stem}Config")(
            vision_config=vision, text_config=text(), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
        )
        return made(f"{stem}ForConditionalGeneration", config, attention)

    return build
