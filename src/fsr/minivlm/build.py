"""The embedded model's architecture: the CLIP and LLaVA classes of Transformers at a size that a laptop trains.

CLIP pair: vision tower d=192, 5 layers, patch 12 (12 x 12 tokens and [CLS]); text tower d=128, 2 layers; joint space
128.
LLaVA: the same tower read at hidden state -2 without [CLS], a two-layer projector, Llama d=192 with 4 layers and 6
heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from fsr.minivlm.scenes import PATCH, SIDE
from fsr.minivlm.vocabulary import SPECIAL, WORDS

__all__ = ["GRID", "build_clip", "build_llava", "sincos_positions"]

GRID = SIDE // PATCH
_ID = {w: i for i, w in enumerate(SPECIAL)}
_VISION: dict[str, Any] = dict(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=5,
    num_attention_heads=6,
    image_size=SIDE,
    patch_size=PATCH,
    projection_dim=128,
)


def sincos_positions(grid: int, width: int) -> torch.Tensor:
    """Two-dimensional sine-cosine code, [grid * grid, width], unit mean square. A random table is forgotten by dense
    losses, this is not."""
    frequency = torch.exp(torch.linspace(0.0, -3.0, width // 4))
    y, x = torch.meshgrid(torch.arange(grid).float(), torch.arange(grid).float(), indexing="ij")
    angles = [v.flatten()[:, None] * frequency for v in (y, x)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1) * 2**0.5


def build_clip() -> CLIPModel:
    """A CLIP pair with random weights and a sine-cosine position table."""
    text = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        projection_dim=128,
        pad_token_id=_ID["<pad>"],
        bos_token_id=_ID["<bos>"],
        eos_token_id=_ID["<eos>"],
    )
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=_vision().to_dict(), projection_dim=128))
    embeddings = clip.vision_model.embeddings
    with torch.no_grad():
        nn.init.normal_(embeddings.patch_embedding.weight, std=(3 * PATCH * PATCH) ** -0.5)
        embeddings.position_embedding.weight.mul_(0)
        embeddings.position_embedding.weight[1:] = 0.5 * sincos_positions(GRID, 192)
    return clip


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(**_VISION)


def build_llava() -> LlavaForConditionalGeneration:
    """LLaVA with random weights; the tower's are loaded from the CLIP pair before training."""
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=_ID["<pad>"],
        bos_token_id=_ID["<bos>"],
        eos_token_id=_ID["<eos>"],
    )
    config = LlavaConfig(
        vision_config=_vision(),
        text_config=text,
        image_token_index=_ID["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)
