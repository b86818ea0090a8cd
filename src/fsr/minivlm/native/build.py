"""The architecture of `mini-qwen3`: the Qwen3-VL classes of Transformers at a size that a laptop trains.

Vision tower d=192, 4 blocks, patch 8, 2 x 2 patches merged into one visual token, DeepStack after blocks 1 and 2;
language model d=192, 4 layers, 6 heads, interleaved M-RoPE. The words are those of `mini`, under the same numbers, and
three special ones.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from fsr.minivlm.vocabulary import WORDS, tokenizer

__all__ = ["CHAT_TEMPLATE", "DEEPSTACK", "MERGE", "PATCH", "SPECIAL", "WIDTH", "build_qwen3", "qwen3_tokenizer"]

WIDTH = 192
PATCH = 8
MERGE = 2
DEEPSTACK = (1, 2)  # blocks whose output reaches the language model by its first layers
IMAGE = "<|image_pad|>"
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
_BOS, _EOS = WORDS.index("<bos>"), WORDS.index("<eos>")

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}"
    "<bos>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% else %} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<eos>{% endif %}{% endfor %}"
)


def special_id(word: str) -> int:
    """The number of one of `SPECIAL`."""
    return len(WORDS) + SPECIAL.index(word)


def qwen3_tokenizer() -> PreTrainedTokenizerFast:
    """`mini`'s words, and the marks that Qwen3-VL puts around a picture."""
    words = tokenizer(IMAGE)
    words.add_tokens([AddedToken(w, special=True, normalized=False) for w in SPECIAL], special_tokens=True)
    words.chat_template = CHAT_TEMPLATE
    words.model_max_length = 1024
    return words


def build_qwen3() -> Qwen3VLForConditionalGeneration:
    """Qwen3-VL with random weights."""
    vision: dict[str, Any] = dict(
        depth=4,
        hidden_size=WIDTH,
        intermediate_size=768,
        num_heads=6,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
        out_hidden_size=WIDTH,
        num_position_embeddings=144,
        deepstack_visual_indexes=list(DEEPSTACK),
    )
    language: dict[str, Any] = dict(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        pad_token_id=WORDS.index("<pad>"),
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        tie_word_embeddings=True,
    )
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config=language,
        image_token_id=WORDS.index("<image>"),
        video_token_id=special_id("<|video_pad|>"),
        vision_start_token_id=special_id("<|vision_start|>"),
        vision_end_token_id=special_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config)
