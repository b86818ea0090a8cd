"""Checkpoints for the engines: `mini` as it is, and tiny random models with heads of 32, as vLLM's CPU kernels want."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "shims")]

import torchvision_schemas  # noqa: E402, F401  (before anything that imports torchvision)
import transformers as t  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

import families  # noqa: E402
import tiny  # noqa: E402
import torchvision_families  # noqa: E402

MINI = str(files("fsr.minivlm") / "data" / "mini")
TEXT: dict[str, Any] = dict(
    vocab_size=families.VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=families.PAD, bos_token_id=1, eos_token_id=None,
)  # fmt: skip


def save(name: str, folder: Path) -> str:
    """The folder of a saved checkpoint: model and processor."""
    build = {
        "llava-next": _llava_next, "internvl": _internvl, "gemma3": _gemma3, "llava-onevision": _onevision,
        "gemma4": _gemma4,
    }  # fmt: skip
    model, processor = build[name]() if name in build else _qwen(name)
    tiny.sharpen(model, seed=3, scale=6.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if name == "qwen3-vl-moe":
        _experts_as_published(folder / "model.safetensors")
    return str(folder)


def _experts_as_published(weights: Path) -> None:
    """Published checkpoints hold the experts' matrices transposed. Transformers reads both, vLLM only those."""
    held = load_file(weights)
    for key in [k for k in held if ".experts." in k]:
        held[key] = held[key].transpose(1, 2).contiguous()
    save_file(held, weights, metadata={"format": "pt"})


def _llava_next() -> tuple[Any, Any]:
    image = tiny.SPECIAL.index("<image>")
    vision = families.clip_vision(hidden_size=64, num_attention_heads=2)
    config = t.LlavaNextConfig(
        vision_config=vision, text_config=t.LlamaConfig(**TEXT), image_token_index=image,
        image_grid_pinpoints=families.PINPOINTS, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    tile = {"height": families.SIDE, "width": families.SIDE}
    processor = t.LlavaNextProcessor(
        image_processor=t.LlavaNextImageProcessor(
            size={"shortest_edge": families.SIDE}, crop_size=tile, image_grid_pinpoints=families.PINPOINTS
        ),
        tokenizer=tiny.word_tokenizer(), patch_size=families.PATCH, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=tiny.CHAT_TEMPLATE,
    )  # fmt: skip
    return t.LlavaNextForConditionalGeneration(config), processor


def _qwen(name: str) -> tuple[Any, Any]:
    """Every Qwen: one kind of language model, four kinds of towers."""
    stem = {
        "qwen2-vl": "Qwen2VL", "qwen2.5-vl": "Qwen2_5_VL", "qwen3-vl": "Qwen3VL", "qwen3-vl-moe": "Qwen3VLMoe",
        "qwen3.5": "Qwen3_5", "qwen3.5-attention": "Qwen3_5",
    }[name]  # fmt: skip
    vision: dict[str, Any] = dict(
        depth=4, num_heads=2, in_channels=3, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, hidden_size=64,
    )  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    language = {**TEXT, "rope_parameters": rope}
    if name == "qwen2-vl":
        vision |= dict(embed_dim=64, mlp_ratio=2)
    elif name == "qwen2.5-vl":
        vision |= dict(intermediate_size=48, out_hidden_size=64, window_size=16, tokens_per_second=2)
        vision |= dict(fullatt_block_indexes=[1, 3])
    else:
        vision |= dict(intermediate_size=48, out_hidden_size=64, num_position_embeddings=64)
        language |= dict(head_dim=32, num_hidden_layers=3)
        rope["mrope_interleaved"] = True
    if name.startswith("qwen3-vl"):
        vision |= dict(deepstack_visual_indexes=[0, 2])
    if name.startswith("qwen3.5"):
        # vLLM's kernels for CPUs know the recurrent layers in bfloat16 only; in float32 all layers have attention.
        rope["partial_rotary_factor"] = 1.0
        kinds = ["full_attention"] if name == "qwen3.5-attention" else ["linear_attention", "full_attention"]
        language |= dict(num_hidden_layers=4, layer_types=kinds * (4 // len(kinds)))
        language |= dict(linear_num_key_heads=2, linear_num_value_heads=4)
    if name == "qwen3-vl-moe":
        language |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True)
    config = getattr(t, f"{stem}Config")(
        text_config=language, vision_config=vision, image_token_id=families.IMAGE, video_token_id=families.VIDEO,
        vision_start_token_id=families.OPEN, vision_end_token_id=families.CLOSE,
        architectures=[f"{stem}ForConditionalGeneration"],
    )  # fmt: skip
    processor = torchvision_families.processor_of(name if name.startswith("qwen2") else "qwen3-vl")
    return getattr(t, f"{stem}ForConditionalGeneration")(config), processor


def _internvl() -> tuple[Any, Any]:
    vision = t.InternVLVisionConfig(
        hidden_size=64, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        patch_size=[families.PATCH] * 2, image_size=[families.SIDE] * 2,
    )  # fmt: skip
    config = t.InternVLConfig(
        vision_config=vision, text_config=t.Qwen2Config(**TEXT), image_token_id=families.IMAGE, downsample_ratio=0.5,
    )  # fmt: skip
    return t.InternVLForConditionalGeneration(config), torchvision_families.processor_of("internvl")


def _gemma3() -> tuple[Any, Any]:
    language = t.Gemma3TextConfig(
        **{**TEXT, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64, "eos_token_id": 2}
    )
    config = t.Gemma3Config(
        vision_config=_siglip(patch_size=4), text_config=language, image_token_id=families.IMAGE,
        image_token_index=families.IMAGE, mm_tokens_per_image=16, boi_token_index=families.OPEN,
        eoi_token_index=families.CLOSE,
    )  # fmt: skip
    processor = torchvision_families.processor_of("gemma3")
    # vLLM looks for four tokens of line breaks, which every Gemma has.
    told = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for breaks, number in enumerate(range(75, 79), start=1):
        told["model"]["vocab"].pop(f"<unused{number}>")
        told["model"]["vocab"]["\n" * breaks] = number
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))
    return t.Gemma3ForConditionalGeneration(config), processor


def _gemma4() -> tuple[Any, Any]:
    """Embeddings per layer, shared keys and values, sliding windows."""
    vision = t.Gemma4VisionConfig(
        hidden_size=64, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        head_dim=32, patch_size=4, pooling_kernel_size=2, position_embedding_size=64, standardize=False,
        default_output_length=70,
    )  # fmt: skip
    language = t.Gemma4TextConfig(
        **{**TEXT, "num_hidden_layers": 4, "eos_token_id": 2}, head_dim=32, global_head_dim=64, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        vocab_size_per_layer_input=families.VOCAB, hidden_size_per_layer_input=8, final_logit_softcapping=30.0,
    )  # fmt: skip
    config = t.Gemma4Config(
        vision_config=vision, text_config=language, image_token_id=families.IMAGE, video_token_id=families.VIDEO,
        boi_token_id=families.OPEN, eoi_token_id=families.CLOSE, audio_token_id=77,
    )  # fmt: skip
    return t.Gemma4ForConditionalGeneration(config), torchvision_families.processor_of("gemma4")


def _onevision() -> tuple[Any, Any]:
    config = t.LlavaOnevisionConfig(
        vision_config=_siglip(), text_config=t.Qwen2Config(**TEXT), image_token_id=families.IMAGE,
        video_token_id=families.VIDEO, image_grid_pinpoints=families.PINPOINTS, vision_feature_layer=-1,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    processor = torchvision_families.processor_of("llava-onevision")
    processor.vision_aspect_ratio = "anyres_max_9"  # as every published checkpoint; vLLM knows no other
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def _siglip(**changes: Any) -> Any:
    return families.siglip_vision(hidden_size=64, num_attention_heads=2, **changes)
