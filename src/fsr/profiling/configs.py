"""True-size models by name, as Transformers config objects: the published numbers, so that nothing has to be
downloaded.

The numbers are those of each checkpoint's `config.json` on the hub (named in `CONFIGS`), written down by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsr.errors import UsageError
from fsr.profiling.configs_qwen import qwen2, qwen2_5_vl_3b, qwen2_5_vl_7b, qwen2_vl_7b, qwen3_vl_2b, qwen3_vl_8b

__all__ = ["CONFIGS", "NamedConfig", "clip_text", "named"]


@dataclass(frozen=True)
class NamedConfig:
    """checkpoint: where the numbers come from. build: makes a fresh config object."""

    checkpoint: str
    build: Callable[[], Any]


def named(name: str) -> Any:
    """A fresh config object.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in CONFIGS:
        raise UsageError(f"no config {name!r}: choose one of {', '.join(CONFIGS)}.")
    return CONFIGS[name].build()


def clip_text() -> Any:
    """The text tower that was trained with CLIP ViT-L/14-336."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        projection_dim=768,
        vocab_size=49408,
    )


# ---------------------------------------------------------------------------------------------------------- vision
# towers


def _clip_large() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def _so400m(image: int, layers: int = 27, **more: Any) -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=layers,
        num_attention_heads=16,
        image_size=image,
        patch_size=14,
        vision_use_head=False,
        **more,
    )


# ---------------------------------------------------------------------------------------------------------------
# decoders

VICUNA_7B: dict[str, Any] = dict(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
VICUNA_13B: dict[str, Any] = dict(
    hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
)


def _vicuna(sizes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**sizes, vocab_size=32064, max_position_embeddings=4096)


# ---------------------------------------------------------------------------------------------------------------
# families


def _llava(sizes: dict[str, Any]) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(vision_config=_clip_large(), text_config=_vicuna(sizes), image_token_index=32000)


def _next(sizes: dict[str, Any]) -> Any:
    from transformers import LlavaNextConfig

    pins = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextConfig(
        vision_config=_clip_large(),
        text_config=_vicuna(sizes),
        image_token_index=32000,
        image_grid_pinpoints=pins,
    )


def _next_video() -> Any:
    from transformers import LlavaNextVideoConfig

    pins = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextVideoConfig(vision_config=_clip_large(), text_config=_vicuna(VICUNA_7B), image_grid_pinpoints=pins)


def _onevision() -> Any:
    from transformers import LlavaOnevisionConfig

    pins = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]
    return LlavaOnevisionConfig(
        vision_config=_so400m(384, layers=26), text_config=qwen2(152000), image_grid_pinpoints=pins
    )


def _internvl3() -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig

    vision = InternVLVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, attention_bias=True)
    return InternVLConfig(
        vision_config=vision, text_config=qwen2(151674), image_token_id=151667, tie_word_embeddings=False
    )


def _gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3TextConfig

    text = Gemma3TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=1024,
        vocab_size=262208,
    )
    return Gemma3Config(vision_config=_so400m(896), text_config=text, mm_tokens_per_image=256)


def _paligemma() -> Any:
    from transformers import GemmaConfig, PaliGemmaConfig

    text = GemmaConfig(
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=257216,
    )
    vision = _so400m(224, projection_dim=2048)
    return PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=257152, projection_dim=2048)


def _smolvlm() -> Any:
    from transformers import LlamaConfig, SmolVLMConfig
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    vision = SmolVLMVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        vocab_size=49280,
        max_position_embeddings=8192,
    )
    return SmolVLMConfig(vision_config=vision, text_config=text, image_token_id=49190, scale_factor=3)


CONFIGS: dict[str, NamedConfig] = {
    "llava-1.5-7b": NamedConfig("llava-hf/llava-1.5-7b-hf", lambda: _llava(VICUNA_7B)),
    "llava-1.5-13b": NamedConfig("llava-hf/llava-1.5-13b-hf", lambda: _llava(VICUNA_13B)),
    "llava-next-7b": NamedConfig("llava-hf/llava-v1.6-vicuna-7b-hf", lambda: _next(VICUNA_7B)),
    "llava-next-13b": NamedConfig("llava-hf/llava-v1.6-vicuna-13b-hf", lambda: _next(VICUNA_13B)),
    "llava-next-video-7b": NamedConfig("llava-hf/LLaVA-NeXT-Video-7B-hf", _next_video),
    "llava-onevision-7b": NamedConfig("llava-hf/llava-onevision-qwen2-7b-ov-hf", _onevision),
    "qwen2-vl-7b": NamedConfig("Qwen/Qwen2-VL-7B-Instruct", qwen2_vl_7b),
    "qwen2.5-vl-3b": NamedConfig("Qwen/Qwen2.5-VL-3B-Instruct", qwen2_5_vl_3b),
    "qwen2.5-vl-7b": NamedConfig("Qwen/Qwen2.5-VL-7B-Instruct", qwen2_5_vl_7b),
    "qwen3-vl-2b": NamedConfig("Qwen/Qwen3-VL-2B-Instruct", qwen3_vl_2b),
    "qwen3-vl-8b": NamedConfig("Qwen/Qwen3-VL-8B-Instruct", qwen3_vl_8b),
    "internvl3-8b": NamedConfig("OpenGVLab/InternVL3-8B-hf", _internvl3),
    "gemma-3-4b": NamedConfig("google/gemma-3-4b-it", _gemma3),
    "paligemma-3b-224": NamedConfig("google/paligemma-3b-pt-224", _paligemma),
    "smolvlm2-2.2b": NamedConfig("HuggingFaceTB/SmolVLM2-2.2B-Instruct", _smolvlm),
}
