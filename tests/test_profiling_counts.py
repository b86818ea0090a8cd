"""Analytic counts against torch's own counter, on tiny eager models of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch.utils.flop_counter import FlopCounterMode

from fsr.errors import UnsupportedModelError, UsageError
from fsr.profiling.counts import Convention, count, kv_bytes
from fsr.profiling.decoder import language
from fsr.profiling.inputs import synthetic
from fsr.profiling.schedules import fastv, pyramid_drop, staged
from fsr.profiling.shapes import vision
from fsr.profiling.visual import visual

TEXT = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=72,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=2048,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
VIT = dict(
    hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
)
MROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]})
PINS = [[16, 32], [32, 16], [32, 32]]
IMAGE = 90


def clip(**changes: Any) -> Any:
    return t.CLIPVisionConfig(**{**VIT, "projection_dim": 16, **changes})


def siglip(head: bool = False, **changes: Any) -> Any:
    return t.SiglipVisionConfig(**{**VIT, "vision_use_head": head, **changes})


def qwen_text(cls: Any, **changes: Any) -> Any:
    settings = {k: v for k, v in TEXT.items() if k != "head_dim"}
    return cls(**{**settings, **MROPE, **changes})


QWEN_VISION = dict(depth=4, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)


def configs() -> dict[str, tuple[Any, Any, tuple[int, int] | None]]:
    """name -> (model class, config, picture size)."""
    llama, qwen2 = t.LlamaConfig(**TEXT), t.Qwen2Config(**TEXT)
    return {
        "llava": (
            t.LlavaForConditionalGeneration,
            t.LlavaConfig(vision_config=clip(), text_config=llama, image_token_index=IMAGE, vision_feature_layer=-2),
            None,
        ),
        "llava-two-layers-full": (
            t.LlavaForConditionalGeneration,
            t.LlavaConfig(
                vision_config=clip(),
                text_config=llama,
                image_token_index=IMAGE,
                vision_feature_layer=[-2, -1],
                vision_feature_select_strategy="full",
            ),
            None,
        ),
        "llava-next": (
            t.LlavaNextForConditionalGeneration,
            t.LlavaNextConfig(
                vision_config=clip(), text_config=llama, image_token_index=IMAGE, image_grid_pinpoints=PINS
            ),
            (30, 20),
        ),
        "llava-onevision": (
            t.LlavaOnevisionForConditionalGeneration,
            t.LlavaOnevisionConfig(
                vision_config=siglip(),
                text_config=qwen2,
                image_token_index=IMAGE,
                image_grid_pinpoints=[*PINS, [64, 64]],
                vision_aspect_ratio="anyres_max_9",
            ),
            (60, 64),
        ),
        "llava-onevision-pooling-head": (
            t.LlavaOnevisionForConditionalGeneration,
            t.LlavaOnevisionConfig(
                vision_config=siglip(head=True),
                text_config=qwen2,
                image_token_index=IMAGE,
                image_grid_pinpoints=PINS,
            ),
            (32, 32),
        ),
        "llava-next-video": (
            t.LlavaNextVideoForConditionalGeneration,
            t.LlavaNextVideoConfig(
                vision_config=clip(), text_config=llama, image_token_index=IMAGE, image_grid_pinpoints=PINS
            ),
            (16, 32),
        ),
        "internvl": (
            t.InternVLForConditionalGeneration,
            t.InternVLConfig(
                vision_config=t.InternVLVisionConfig(**{**VIT, "image_size": [16, 16], "patch_size": [4, 4]}),
                text_config=qwen2,
                image_token_id=IMAGE,
                image_seq_length=4,
            ),
            None,
        ),
        "gemma3": (
            t.Gemma3ForConditionalGeneration,
            t.Gemma3Config(
                vision_config=siglip(),
                text_config=t.Gemma3TextConfig(**TEXT, query_pre_attn_scalar=8, sliding_window=512),
                image_token_index=IMAGE,
                mm_tokens_per_image=4,
            ),
            None,
        ),
        "paligemma": (
            t.PaliGemmaForConditionalGeneration,
            t.PaliGemmaConfig(
                vision_config=siglip(projection_dim=32),
                text_config=t.GemmaConfig(**TEXT),
                image_token_index=IMAGE,
                projection_dim=32,
            ),
            None,
        ),
        "smolvlm": (
            t.SmolVLMForConditionalGeneration,
            t.SmolVLMConfig(
                vision_config=t.SmolVLMVisionConfig(**VIT), text_config=llama, image_token_id=IMAGE, scale_factor=2
            ),
            None,
        ),
        "idefics3": (
            t.Idefics3ForConditionalGeneration,
            t.Idefics3Config(
                vision_config=t.models.idefics3.configuration_idefics3.Idefics3VisionConfig(**VIT),
                text_config=llama,
                image_token_id=IMAGE,
                scale_factor=2,
            ),
            None,
        ),
        "qwen2-vl": (
            t.Qwen2VLForConditionalGeneration,
            t.Qwen2VLConfig(
                vision_config=t.models.qwen2_vl.Qwen2VLVisionConfig(
                    **QWEN_VISION, embed_dim=32, hidden_size=32, mlp_ratio=3
                ),
                text_config=qwen_text(t.Qwen2VLTextConfig),
                image_token_id=IMAGE,
                video_token_id=91,
                vision_start_token_id=92,
                vision_end_token_id=93,
            ),
            (40, 48),
        ),
        "qwen2.5-vl": (
            t.Qwen2_5_VLForConditionalGeneration,
            t.Qwen2_5_VLConfig(
                vision_config=t.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(
                    **QWEN_VISION,
                    hidden_size=32,
                    intermediate_size=44,
                    out_hidden_size=32,
                    window_size=16,
                    fullatt_block_indexes=[1, 3],
                ),
                text_config=qwen_text(t.Qwen2_5_VLTextConfig),
                image_token_id=IMAGE,
                video_token_id=91,
                vision_start_token_id=92,
                vision_end_token_id=93,
            ),
            (40, 48),
        ),
        "qwen3-vl": (
            t.Qwen3VLForConditionalGeneration,
            t.Qwen3VLConfig(
                vision_config=t.models.qwen3_vl.configuration_qwen3_vl.Qwen3VLVisionConfig(
                    **QWEN_VISION,
                    hidden_size=32,
                    intermediate_size=44,
                    out_hidden_size=32,
                    num_position_embeddings=64,
                    deepstack_visual_indexes=[0, 2],
                ),
                text_config=qwen_text(t.Qwen3VLTextConfig, head_dim=8),
                image_token_id=IMAGE,
                video_token_id=91,
                vision_start_token_id=92,
                vision_end_token_id=93,
            ),
            (40, 48),
        ),
    }


def count_report(model: Any, call: Any) -> dict[str, int]:
    """FLOPs that torch saw, per part; the rotary table is a matrix product in some releases and no part of ours."""
    mode = FlopCounterMode(display=False, depth=20)
    with torch.no_grad(), mode:
        call()
    seen = {name: sum(ops.values()) for name, ops in mode.get_flop_counts().items()}
    rotary = sum(v for name, v in seen.items() if name.endswith("rotary_emb") or name.endswith("rotary_pos_emb"))
    return {"total": seen["Global"] - rotary, "lm_head": sum(v for n, v in seen.items() if n.endswith(".lm_head"))}


@pytest.mark.parametrize("name", list(configs()))
def test_counts_equal_what_torch_counts(name: str) -> None:
    cls, config, size = configs()[name]
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = cls(config).eval()
    picture = visual(config, size)
    inputs = synthetic(config, picture, size=size, text=9)
    for rows, head in ((1, "last"), (0, "all")):
        seen = count_report(model, lambda rows=rows: model(**inputs, logits_to_keep=rows, use_cache=True))
        ours = count(config, picture, text=9, convention=Convention(lm_head=head))
        assert 2 * ours.macs["lm_head"] == seen["lm_head"]
        assert 2 * ours.total_macs == seen["total"]
    cache = model(**inputs, use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert count(config, picture, text=9, bytes_per_value=4).kv_bytes == real


@pytest.mark.parametrize("name", ["llava-onevision", "llava-next-video", "qwen2.5-vl", "qwen3-vl"])
def test_counts_of_a_clip_equal_what_torch_counts(name: str) -> None:
    cls, config, size = configs()[name]
    config._attn_implementation = "eager"
    model = cls(config).eval()
    clip_ = visual(config, size or (40, 48), frames=4)
    if name.startswith("qwen"):
        pixels = torch.randn(clip_.patches, clip_.patch_inputs)
        call = lambda: model.model.get_video_features(pixels, torch.tensor([[2, 10, 12]]))
    else:
        call = lambda: model.model.get_video_features(torch.randn(1, 4, 3, 16, 16))
    out: list[Any] = []
    seen = count_report(model, lambda: out.append(call()))
    ours = count(config, clip_)
    assert 2 * (ours.macs["vision_tower"] + ours.macs["projector"]) == seen["total"]
    assert sum(len(e) for e in out[0].pooler_output) == clip_.tokens


def test_a_schedule_counts_each_layer_at_its_own_length() -> None:
    _, config, _ = configs()["llava"]
    llm, picture = language(config), visual(config)
    ours = count(config, picture, kept=(16, 5), text=7)
    assert ours.macs["llm_linear"] == (23 + 12) * llm.stack[0].linear(32)
    assert ours.macs["llm_attention"] == 2 * 32 * (23**2 + 12**2)
    assert ours.kv_bytes == (23 + 12) * 2 * 2 * 8 * 2 == kv_bytes(llm, [23, 12])
    same = count(config, picture, kept=(16, 16), text=7)
    assert same.macs == count(config, picture, text=7).macs
    with pytest.raises(UsageError, match="3 entries for 2"):
        count(config, picture, kept=(1, 2, 3))


def test_schedules() -> None:
    assert fastv(5, 576, 30) == (576, 576, 30, 30, 30)
    assert pyramid_drop(8, 576) == (576, 576, 288, 288, 144, 144, 72, 72)
    assert staged(4, 10, [(0, 8), (3, 2)]) == (8, 8, 8, 2)
    for bad in ([(3, 2), (1, 4)], [(1, 2), (1, 3)], [(4, 1)]):
        with pytest.raises(UsageError):
            staged(4, 10, bad)


def test_unknown_models_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="blip-2"):
        visual(t.Blip2Config())
    opt = t.LlavaConfig(vision_config=clip(), text_config=t.OPTConfig())
    with pytest.raises(UnsupportedModelError, match="opt"):
        language(opt)
    with pytest.raises(UsageError, match="no counts of clips"):
        visual(configs()["gemma3"][1], frames=4)


def test_grouped_queries_shrink_the_cache_and_the_projections_but_not_attention() -> None:
    _, config, _ = configs()["llava"]
    wide = t.LlavaConfig(
        vision_config=clip(), text_config=t.LlamaConfig(**{**TEXT, "num_key_value_heads": 4}), image_token_index=IMAGE
    )
    picture = visual(config)
    few, many = count(config, picture), count(wide, picture)
    assert many.kv_bytes == 2 * few.kv_bytes
    assert many.macs["llm_attention"] == few.macs["llm_attention"]
    assert language(wide).stack[0].linear(32) - language(config).stack[0].linear(32) == 2 * 32 * 16
    assert vision(config).matrices == 2
