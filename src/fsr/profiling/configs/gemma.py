"""PaliGemma, Gemma 3, Gemma 4 (dense, with experts, with embeddings per layer)."""

from __future__ import annotations

from typing import Any

from fsr.profiling.configs.parts import NamedConfig, so400m

__all__ = ["GEMMA"]


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
    return Gemma3Config(vision_config=so400m(896), text_config=text, mm_tokens_per_image=256)


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
    vision = so400m(224, projection_dim=2048)
    return PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=257152, projection_dim=2048)


def _gemma4(tower: dict[str, Any], audio: bool = False, **sizes: Any) -> Any:
    """Heads of 256 in windows and of 512 in every sixth layer, which sees everything: Transformers' defaults."""
    from transformers import Gemma4AudioConfig, Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    text = Gemma4TextConfig(**sizes, final_logit_softcapping=30.0)
    return Gemma4Config(
        vision_config=Gemma4VisionConfig(**tower),
        text_config=text,
        audio_config=Gemma4AudioConfig() if audio else None,
    )


# The tower of the large models, 550M in the model card; the small ones have Transformers' default, 150M.
_TOWER: dict[str, Any] = dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=72,
    standardize=True,
)
_LARGE: dict[str, Any] = dict(
    hidden_size_per_layer_input=0,
    attention_k_eq_v=True,
    sliding_window=1024,
    max_position_embeddings=262144,
    use_bidirectional_attention="vision",
)

# Text sizes: `config.json` of the checkpoints (google/gemma-4-*-it).
GEMMA = {
    "paligemma-3b-224": NamedConfig("google/paligemma-3b-pt-224", _paligemma),
    "gemma-3-4b": NamedConfig("google/gemma-3-4b-it", _gemma3),
    "gemma-4-e4b": NamedConfig(
        "google/gemma-4-E4B-it",
        lambda: _gemma4(
            dict(use_clipped_linears=True),
            audio=True,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=42,
            num_attention_heads=8,
            num_key_value_heads=2,
            num_kv_shared_layers=18,
        ),
    ),
    "gemma-4-26b-a4b": NamedConfig(
        "google/gemma-4-26B-A4B-it",
        lambda: _gemma4(
            _TOWER,
            **_LARGE,
            hidden_size=2816,
            intermediate_size=2112,
            num_hidden_layers=30,
            num_attention_heads=16,
            num_key_value_heads=8,
            num_global_key_value_heads=2,
            enable_moe_block=True,
            num_experts=128,
            top_k_experts=8,
            moe_intermediate_size=704,
        ),
    ),
    "gemma-4-31b": NamedConfig(
        "google/gemma-4-31B-it",
        lambda: _gemma4(
            _TOWER,
            **_LARGE,
            hidden_size=5376,
            intermediate_size=21504,
            num_hidden_layers=60,
            num_attention_heads=32,
            num_key_value_heads=16,
            num_global_key_value_heads=4,
        ),
    ),
}
