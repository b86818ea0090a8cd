"""Towers and language models that several families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["QWEN2_7B", "NamedConfig", "clip_large", "clip_text", "mrope", "qwen2", "so400m"]


@dataclass(frozen=True)
class NamedConfig:
    """checkpoint: where the numbers come from. build: makes a fresh config object."""

    checkpoint: str
    build: Callable[[], Any]


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


def clip_large() -> Any:
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


def so400m(image: int, layers: int = 27, **more: Any) -> Any:
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


QWEN2_7B: dict[str, Any] = dict(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=32768,
)


def qwen2(vocabulary: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**QWEN2_7B, vocab_size=vocabulary)


def mrope(*sections: int, theta: float = 1e6) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}
