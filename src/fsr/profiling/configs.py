"""True-size models by name, as Transformers config objects: the published numbers, so that nothing has to be
downloaded.

The numbers are those of each checkpoint's `config.json` on the hub (named in `CONFIGS`), written down by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsr.errors import UsageError

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
QWEN2_7B: dict[str, Any] = dict(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=32768,
)


def _vicuna(sizes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**sizes, vocab_size=32064, max_position_embeddings=4096)


def _qwen2(vocabulary: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**QWEN2_7B, vocab_size=vocabulary)


def _mrope(*sections: int, theta: float = 1e6) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}


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
        vision_config=_so400m(384, layers=26), text_config=_qwen2(152000), image_grid_pinpoints=pins
    )


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLTextConfig
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    vision = Qwen2VLVisionConfig(depth=32, embed_dim=1280, hidden_size=3584, num_heads=16, mlp_ratio=4)
    text = Qwen2VLTextConfig(**QWEN2_7B, vocab_size=152064, rope_parameters=_mrope(16, 24, 24))
    return Qwen2VLConfig(vision_config=vision, text_config=text)


def _qwen2_5_vl(sizes: dict[str, Any], vocabulary: int, tied: bool = False) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    vision = Qwen2_5_VLVisionConfig(
        depth=32,
        hidden_size=1280,
        num_heads=16,
        intermediate_size=3420,
        out_hidden_size=sizes["hidden_size"],
        window_size=112,
        fullatt_block_indexes=[7, 15, 23, 31],
    )
    text = Qwen2_5_VLTextConfig(**sizes, vocab_size=vocabulary, rope_parameters=_mrope(16, 24, 24))
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=tied)


def _qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLTextConfig
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

    vision = Qwen3VLVisionConfig(
        depth=27,
        hidden_size=1152,
        num_heads=16,
        intermediate_size=4304,
        out_hidden_size=4096,
        patch_size=16,
        deepstack_visual_indexes=[8, 16, 24],
    )
    text = Qwen3VLTextConfig(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        rope_parameters=_mrope(24, 20, 20, theta=5e6),
    )
    return Qwen3VLConfig(vision_config=vision, text_config=text)


def _internvl3() -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig

    vision = InternVLVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, attention_bias=True)
    return InternVLConfig(
        vision_config=vision, text_config=_qwen2(151674), image_token_id=151667, tie_word_embeddings=False
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


_QWEN2_5_3B: dict[str, Any] = dict(
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    max_position_embeddings=128000,
)

CONFIGS: dict[str, NamedConfig] = {
    "llava-1.5-7b": NamedConfig("llava-hf/llava-1.5-7b-hf", lambda: _llava(VICUNA_7B)),
    "llava-1.5-13b": NamedConfig("llava-hf/llava-1.5-13b-hf", lambda: _llava(VICUNA_13B)),
    "llava-next-7b": NamedConfig("llava-hf/llava-v1.6-vicuna-7b-hf", lambda: _next(VICUNA_7B)),
    "llava-next-13b": NamedConfig("llava-hf/llava-v1.6-vicuna-13b-hf", lambda: _next(VICUNA_13B)),
    "llava-next-video-7b": NamedConfig("llava-hf/LLaVA-NeXT-Video-7B-hf", _next_video),
    "llava-onevision-7b": NamedConfig("llava-hf/llava-onevision-qwen2-7b-ov-hf", _onevision),
    "qwen2-vl-7b": NamedConfig("Qwen/Qwen2-VL-7B-Instruct", _qwen2_vl),
    "qwen2.5-vl-3b": NamedConfig("Qwen/Qwen2.5-VL-3B-Instruct", lambda: _qwen2_5_vl(_QWEN2_5_3B, 151936, True)),
    "qwen2.5-vl-7b": NamedConfig("Qwen/Qwen2.5-VL-7B-Instruct", lambda: _qwen2_5_vl(QWEN2_7B, 152064)),
    "qwen3-vl-8b": NamedConfig("Qwen/Qwen3-VL-8B-Instruct", _qwen3_vl),
    "internvl3-8b": NamedConfig("OpenGVLab/InternVL3-8B-hf", _internvl3),
    "gemma-3-4b": NamedConfig("google/gemma-3-4b-it", _gemma3),
    "paligemma-3b-224": NamedConfig("google/paligemma-3b-pt-224", _paligemma),
    "smolvlm2-2.2b": NamedConfig("HuggingFaceTB/SmolVLM2-2.2B-Instruct", _smolvlm),
}
