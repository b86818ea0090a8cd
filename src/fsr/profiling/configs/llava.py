"""LLaVA-1.5, LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision."""

from __future__ import annotations

from typing import Any

from fsr.profiling.configs.parts import NamedConfig, clip_large, qwen2, so400m

__all__ = ["LLAVA"]

VICUNA_7B: dict[str, Any] = dict(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
VICUNA_13B: dict[str, Any] = dict(
    hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
)


def _vicuna(sizes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**sizes, vocab_size=32064, max_position_embeddings=4096)


def _llava(sizes: dict[str, Any]) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(vision_config=clip_large(), text_config=_vicuna(sizes), image_token_index=32000)


def _next(sizes: dict[str, Any]) -> Any:
    from transformers import LlavaNextConfig

    pins = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextConfig(
        vision_config=clip_large(),
        text_config=_vicuna(sizes),
        image_token_index=32000,
        image_grid_pinpoints=pins,
    )


def _next_video() -> Any:
    from transformers import LlavaNextVideoConfig

    pins = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextVideoConfig(vision_config=clip_large(), text_config=_vicuna(VICUNA_7B), image_grid_pinpoints=pins)


def _onevision() -> Any:
    from transformers import LlavaOnevisionConfig

    pins = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]
    return LlavaOnevisionConfig(
        vision_config=so400m(384, layers=26), text_config=qwen2(152000), image_grid_pinpoints=pins
    )


LLAVA = {
    "llava-1.5-7b": NamedConfig("llava-hf/llava-1.5-7b-hf", lambda: _llava(VICUNA_7B)),
    "llava-1.5-13b": NamedConfig("llava-hf/llava-1.5-13b-hf", lambda: _llava(VICUNA_13B)),
    "llava-next-7b": NamedConfig("llava-hf/llava-v1.6-vicuna-7b-hf", lambda: _next(VICUNA_7B)),
    "llava-next-13b": NamedConfig("llava-hf/llava-v1.6-vicuna-13b-hf", lambda: _next(VICUNA_13B)),
    "llava-next-video-7b": NamedConfig("llava-hf/LLaVA-NeXT-Video-7B-hf", _next_video),
    "llava-onevision-7b": NamedConfig("llava-hf/llava-onevision-qwen2-7b-ov-hf", _onevision),
}
