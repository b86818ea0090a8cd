"""Checkpoints for the engines: `mini` as it is, and tiny random models with heads of 32, as vLLM's CPU kernels want."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "shims")]

import torchvision_schemas  # noqa: E402, F401  (before anything that imports torchvision)
import transformers as t  # noqa: E402

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
    model, processor = {"llava-next": _llava_next, "qwen2.5-vl": _qwen}[name]()
    tiny.sharpen(model, seed=3, scale=6.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


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


def _qwen() -> tuple[Any, Any]:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    vision = dict(
        depth=4, num_heads=2, in_channels=3, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, hidden_size=64,
        intermediate_size=48, out_hidden_size=64, window_size=16, tokens_per_second=2, fullatt_block_indexes=[1, 3],
    )  # fmt: skip
    config = t.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=families.IMAGE,
        video_token_id=families.VIDEO, vision_start_token_id=families.OPEN, vision_end_token_id=families.CLOSE,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )  # fmt: skip
    return t.Qwen2_5_VLForConditionalGeneration(config), torchvision_families.processor_of("qwen2.5-vl")
