"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL (dense and with experts), Qwen3.5 and 3.6 (dense and with experts)."""

from __future__ import annotations

from typing import Any

from fsr.profiling.configs.parts import QWEN2_7B, NamedConfig, mrope

__all__ = ["QWEN"]

_QWEN2_5_3B: dict[str, Any] = dict(
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    max_position_embeddings=128000,
)


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLTextConfig
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    vision = Qwen2VLVisionConfig(depth=32, embed_dim=1280, hidden_size=3584, num_heads=16, mlp_ratio=4)
    text = Qwen2VLTextConfig(**QWEN2_7B, vocab_size=152064, rope_parameters=mrope(16, 24, 24))
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
    text = Qwen2_5_VLTextConfig(**sizes, vocab_size=vocabulary, rope_parameters=mrope(16, 24, 24))
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=tied)


# (depth, width, heads, inner width, layers that DeepStack reads) of the two towers of Qwen3-VL.
_TOWER_LARGE = (27, 1152, 16, 4304, [8, 16, 24])
_TOWER_SMALL = (24, 1024, 16, 4096, [5, 11, 17])


def _qwen3_tower(kind: str, sizes: tuple[int, int, int, int, list[int]], out: int) -> Any:
    import transformers

    depth, width, heads, inner, deep = sizes
    more = {} if "3_5" in kind else {"deepstack_visual_indexes": deep}
    return getattr(transformers, f"{kind}VisionConfig")(
        depth=depth,
        hidden_size=width,
        num_heads=heads,
        intermediate_size=inner,
        out_hidden_size=out,
        patch_size=16,
        **more,
    )


def _qwen3_vl(tower: tuple[int, int, int, int, list[int]], tied: bool = False, **sizes: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLTextConfig

    text = Qwen3VLTextConfig(
        **sizes, num_key_value_heads=8, head_dim=128, vocab_size=151936, rope_parameters=mrope(24, 20, 20, theta=5e6)
    )
    vision = _qwen3_tower("Qwen3VL", tower, text.hidden_size)
    return Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=tied)


def _qwen3_vl_moe() -> Any:
    """Text: scripts/models/qwen3-vl-30b-a3b.sh of github.com/THUDM/slime; tower: that of Qwen3-VL-8B."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeTextConfig

    text = Qwen3VLMoeTextConfig(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        vocab_size=151936,
        rope_parameters=mrope(24, 20, 20, theta=5e6),
    )
    return Qwen3VLMoeConfig(
        vision_config=_qwen3_tower("Qwen3VLMoe", _TOWER_LARGE, 2048), text_config=text, tie_word_embeddings=False
    )


def _qwen3_5(**sizes: Any) -> Any:
    """Dense. What is not given is the default of Transformers' own config, which is Qwen3.5-9B."""
    from transformers import Qwen3_5Config, Qwen3_5TextConfig

    text = Qwen3_5TextConfig(**sizes)
    vision = _qwen3_tower("Qwen3_5", _TOWER_LARGE, text.hidden_size)
    return Qwen3_5Config(vision_config=vision, text_config=text, tie_word_embeddings=False)


def _qwen3_5_moe() -> Any:
    """The default of Transformers' own config is Qwen3.5-35B-A3B; Qwen3.6-35B-A3B has the same sizes (model card)."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeTextConfig

    return Qwen3_5MoeConfig(
        vision_config=_qwen3_tower("Qwen3_5Moe", _TOWER_LARGE, 2048),
        text_config=Qwen3_5MoeTextConfig(),
        tie_word_embeddings=False,
    )


# Text of 2B: Qwen3-1.7B's. Text of 27B: scripts/models/qwen3.5-27B.sh of github.com/THUDM/slime.
QWEN = {
    "qwen2-vl-7b": NamedConfig("Qwen/Qwen2-VL-7B-Instruct", _qwen2_vl),
    "qwen2.5-vl-3b": NamedConfig("Qwen/Qwen2.5-VL-3B-Instruct", lambda: _qwen2_5_vl(_QWEN2_5_3B, 151936, True)),
    "qwen2.5-vl-7b": NamedConfig("Qwen/Qwen2.5-VL-7B-Instruct", lambda: _qwen2_5_vl(QWEN2_7B, 152064)),
    "qwen3-vl-2b": NamedConfig(
        "Qwen/Qwen3-VL-2B-Instruct",
        lambda: _qwen3_vl(
            _TOWER_SMALL,
            tied=True,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
        ),
    ),
    "qwen3-vl-8b": NamedConfig(
        "Qwen/Qwen3-VL-8B-Instruct",
        lambda: _qwen3_vl(
            _TOWER_LARGE, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32
        ),
    ),
    "qwen3-vl-30b-a3b": NamedConfig("Qwen/Qwen3-VL-30B-A3B-Instruct", _qwen3_vl_moe),
    "qwen3.5-9b": NamedConfig("Qwen/Qwen3.5-9B", _qwen3_5),
    "qwen3.6-27b": NamedConfig(
        "Qwen/Qwen3.6-27B",
        lambda: _qwen3_5(
            hidden_size=5120,
            intermediate_size=17408,
            num_hidden_layers=64,
            num_attention_heads=24,
            linear_num_value_heads=48,
        ),
    ),
    "qwen3.5-35b-a3b": NamedConfig("Qwen/Qwen3.5-35B-A3B", _qwen3_5_moe),
    "qwen3.6-35b-a3b": NamedConfig("Qwen/Qwen3.6-35B-A3B", _qwen3_5_moe),
}
