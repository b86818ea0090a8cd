"""The sizes that operation counts need, read from any Transformers config (`vision_config`, `text_config`). No
weights, no forward.

Counts are multiply-accumulates (MACs) of matrix products; one MAC is two FLOPs. Norms, activations and softmax are
left out: below 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fsr.errors import UnsupportedModelError

__all__ = ["Stack", "language", "side", "text_tower", "vision"]

# Decoders whose feed-forward block is gated (three matrices). Others are refused: a wrong guess would be off by a
# third.
GATED = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text qwen2_vl_text qwen2_5_vl_text qwen3_vl_text smollm3".split()
)


@dataclass(frozen=True)
class Stack:
    """A stack of equal Transformer layers.

    width: hidden size d. mlp: inner size m. matrices: 2, or 3 for a gated feed-forward block (SwiGLU).
    kv_heads: fewer than heads with grouped-query attention. vocabulary: rows of the LM head (0: none).
    """

    layers: int
    width: int
    heads: int
    head_dim: int
    kv_heads: int
    mlp: int
    matrices: int
    vocabulary: int = 0

    def linear(self, matrices: int | None = None) -> int:
        """MACs of all linear maps of one layer for one token: q, k, v, o and the feed-forward block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return 2 * self.width * (q + kv) + (matrices or self.matrices) * self.width * self.mlp

    def attention(self, lengths: Sequence[int]) -> int:
        """MACs of q k^T and p v of one layer for sequences that attend within themselves; causality is not
        exploited."""
        return 2 * self.heads * self.head_dim * sum(n * n for n in lengths)

    @property
    def kv_values(self) -> int:
        """Numbers that the KV cache holds per token and layer."""
        return 2 * self.kv_heads * self.head_dim


def language(config: Any) -> Stack:
    """The decoder of a vision-language config.

    Raises:
        UnsupportedModelError: a decoder whose feed-forward block is not known (or a mixture of experts).
    """
    text = config.get_text_config()
    if text.model_type not in GATED:
        raise UnsupportedModelError(
            f"operations of a {text.model_type!r} decoder are not known here: counts exist for "
            f"{', '.join(sorted(GATED))}."
        )
    return _stack(text, matrices=3, vocabulary=text.vocab_size)


def vision(config: Any) -> Stack:
    """The vision tower of a vision-language config."""
    tower = config.vision_config
    if tower.model_type == "qwen2_vl_vision":  # here `hidden_size` is the width after the merger
        heads, width = tower.num_heads, tower.embed_dim
        return Stack(tower.depth, width, heads, width // heads, heads, width * tower.mlp_ratio, 2)
    return _stack(tower, matrices=3 if tower.model_type == "qwen2_5_vl_vision" else 2)


def text_tower(config: Any) -> Stack:
    """The text half of a CLIP config (`CLIPTextConfig`)."""
    return _stack(config, matrices=2)


def side(value: Any) -> int:
    """Image and patch sizes are written as one number or as two equal ones."""
    return int(value if isinstance(value, int) else value[0])


def _stack(config: Any, matrices: int, vocabulary: int = 0) -> Stack:
    heads = config.num_attention_heads
    return Stack(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        mlp=config.intermediate_size,
        matrices=matrices,
        vocabulary=vocabulary,
    )
