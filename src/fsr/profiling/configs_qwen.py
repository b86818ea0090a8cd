"""Configs of Qwen's models at true size, see `fsr.profiling.configs`."""

from __future__ import annotations

from typing import Any

__all__ = ["qwen2", "qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen2_vl_7b", "qwen3_vl_2b", "qwen3_vl_8b"]

QWEN2_7B: dict[str, Any] = dict(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=32768,
)

QWEN2_5_3B: dict[str, Any] = dict(
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    max_position_embeddings=128000,
)


def qwen2(vocabulary: int) -> Any:
    """The language model of Qwen2-7B, as other families use it."""
    from transformers import Qwen2Config

    return Qwen2Config(**QWEN2_7B, vocab_size=vocabulary)


def _mrope(*sections: int, theta: float = 1e6) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}


def qwen2_vl_7b() -> Any:
    """Qwen2-VL-7B."""
    from transformers import Qwen2VLConfig, Qwen2VLTextConfig
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    vision = Qwen2VLVisionConfig(depth=32, embed_dim=1280, hidden_size=3584, num_heads=16, mlp_ratio=4)
    text = Qwen2VLTextConfig(**QWEN2_7B, vocab_size=152064, rope_parameters=_mrope(16, 24, 24))
    return Qwen2VLConfig(vision_config=vision, text_config=text)


def qwen2_5_vl_3b() -> Any:
    """Qwen2.5-VL-3B."""
    return _qwen2_5_vl(QWEN2_5_3B, 151936, tied=True)


def qwen2_5_vl_7b() -> Any:
    """Qwen2.5-VL-7B."""
    return _qwen2_5_vl(QWEN2_7B, 152064)


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


def qwen3_vl_2b() -> Any:
    """Qwen3-VL-2B."""
    tower = dict(depth=24, hidden_size=1024, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17])
    return _qwen3_vl(tower, hidden=2048, intermediate=6144, layers=28, heads=16, tied=True)


def qwen3_vl_8b() -> Any:
    """Qwen3-VL-8B."""
    tower = dict(depth=27, hidden_size=1152, intermediate_size=4304, deepstack_visual_indexes=[8, 16, 24])
    return _qwen3_vl(tower, hidden=4096, intermediate=12288, layers=36, heads=32)


def _qwen3_vl(
    tower: dict[str, Any], hidden: int, intermediate: int, layers: int, heads: int, tied: bool = False
) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLTextConfig
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

    vision = Qwen3VLVisionConfig(**tower, num_heads=16, out_hidden_size=hidden, patch_size=16)
    text = Qwen3VLTextConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        rope_parameters=_mrope(24, 20, 20, theta=5e6),
    )
    return Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=tied)
