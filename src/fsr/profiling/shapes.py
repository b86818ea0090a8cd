"""The sizes of vision and text towers, read from any Transformers config, and of what one picture is to a tower. No
weights, no forward. Language models are in `decoder`.

Counts are multiply-accumulates (MACs) of matrix products; one MAC is two FLOPs. Norms, activations and softmax are
left out: below 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Stack", "Visual", "side", "text_tower", "vision"]

# Towers whose feed-forward block is gated (three matrices).
GATED = frozenset(
    "qwen2_5_vl_vision qwen2_5_omni_vision_encoder pixtral glm4v_vision glm4v_moe_vision gemma4_vision".split()
)


@dataclass(frozen=True)
class Stack:
    """A stack of equal Transformer layers.

    width: hidden size d. mlp: inner size m. matrices: 2, or 3 for a gated feed-forward block (SwiGLU).
    kv_heads: fewer than heads with grouped-query attention.
    """

    layers: int
    width: int
    heads: int
    head_dim: int
    kv_heads: int
    mlp: int
    matrices: int

    def linear(self) -> int:
        """MACs of all linear maps of one layer for one token: q, k, v, o and the feed-forward block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return 2 * self.width * (q + kv) + self.matrices * self.width * self.mlp

    def attention(self, lengths: Sequence[int]) -> int:
        """MACs of q k^T and p v of one layer for sequences that attend within themselves; causality is not
        exploited."""
        return 2 * self.heads * self.head_dim * sum(n * n for n in lengths)


@dataclass(frozen=True)
class Visual:
    """The visual side of one prompt.

    sequences: lengths of the sequences that the tower attends within ([CLS] included), one per tile, picture or frame.
    windows: lengths of the attention windows (Qwen2.5-VL), else the same; full_layers: how many layers see whole
    sequences.
    patches: rows of the patch embedding; patch_inputs: numbers per patch.
    projector: (rows, in, out) of every linear map between tower and language model (Gemma 4's pooling is one).
    tokens: N, what the language model gets. grid: rows and columns of the N tokens when they are one raster.
    pooled: the tower's pooling head runs although nobody reads it (SigLIP with `vision_use_head`).
    """

    sequences: tuple[int, ...]
    windows: tuple[int, ...]
    full_layers: int
    patches: int
    patch_inputs: int
    projector: tuple[tuple[int, int, int], ...]
    tokens: int
    grid: tuple[int, int] | None = None
    pooled: bool = False


def vision(config: Any) -> Stack:
    """The vision tower of a vision-language config."""
    tower = config.vision_config
    if tower.model_type == "qwen2_vl_vision":  # here `hidden_size` is the width after the merger
        heads, width = tower.num_heads, tower.embed_dim
        return Stack(tower.depth, width, heads, width // heads, heads, width * tower.mlp_ratio, 2)
    stack = _stack(tower, matrices=3 if tower.model_type in GATED else 2)
    # The feed-forward blocks of GLM's tower are as wide as its output; `intermediate_size` is its merger's.
    return replace(stack, mlp=tower.out_hidden_size) if tower.model_type.startswith("glm4v") else stack


def text_tower(config: Any) -> Stack:
    """The text half of a CLIP config (`CLIPTextConfig`)."""
    return _stack(config, matrices=2)


def side(value: Any) -> int:
    """Image and patch sizes are written as one number or as two equal ones."""
    return int(value if isinstance(value, int) else value[0])


def _stack(config: Any, matrices: int) -> Stack:
    # Qwen's and GLM's towers had only names of their own before Transformers 5.24.
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    return Stack(
        layers=getattr(config, "num_hidden_layers", None) or config.depth,
        width=config.hidden_size,
        heads=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        mlp=config.intermediate_size,
        matrices=matrices,
    )
