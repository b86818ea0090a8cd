"""InternVL 3, SmolVLM 2, Mistral Small 3."""

from __future__ import annotations

from typing import Any

from fsr.profiling.configs.parts import NamedConfig, qwen2

__all__ = ["OTHERS"]


def _internvl3() -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig

    vision = InternVLVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, attention_bias=True)
    return InternVLConfig(
        vision_config=vision, text_config=qwen2(151674), image_token_id=151667, tie_word_embeddings=False
    )


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


def _mistral_small_3() -> Any:
    """The default of Transformers' own config, but for the word embeddings, which the checkpoint does not tie."""
    from transformers import Mistral3Config

    return Mistral3Config(tie_word_embeddings=False)


OTHERS = {
    "internvl3-8b": NamedConfig("OpenGVLab/InternVL3-8B-hf", _internvl3),
    "mistral-small-3": NamedConfig("mistralai/Mistral-Small-3.1-24B-Instruct-2503", _mistral_small_3),
    "smolvlm2-2.2b": NamedConfig("HuggingFaceTB/SmolVLM2-2.2B-Instruct", _smolvlm),
}
