"""Operations and KV-cache bytes of one prompt, by part, under a convention that says what is counted.

Parts: vision_tower, projector, text_tower, selection, llm_linear, llm_attention (whatever mixes tokens: attention, or
the gated delta rule with its convolution), lm_head. All numbers are for one prompt and its prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fsr.errors import UsageError
from fsr.profiling.decoder import Decoder, language
from fsr.profiling.shapes import Stack, vision
from fsr.profiling.visual import Visual

__all__ = ["FULL", "PARTS", "Convention", "Counts", "Relevance", "count", "kv_bytes"]

PARTS = ("vision_tower", "projector", "text_tower", "selection", "llm_linear", "llm_attention", "lm_head")
# Qwen-Omni's thinkers run the LM head on every position, whatever `generate` asks for.
ALL_ROWS = frozenset({"qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"})


@dataclass(frozen=True)
class Convention:
    """What is counted. The default is what a model does: everything, text included, one row through the LM head.

    parts: parts that are counted at all. attention: matrix products of attention (n^2), in towers and language model
    alike.
    lm_head: rows it runs on, the "last" (what `generate` asks for) or "all"; layers that read the keys of earlier ones
    (Gemma 4 E2B, E4B) run on the same rows, since Transformers 5.24. text: text tokens in the language model.
    kv_text: text tokens in the KV cache. mlp_matrices: 2 counts a gated feed-forward block as if it had two matrices.
    flops_per_mac: 2, or 1 where a paper prints MACs under the name FLOPs.
    """

    name: str = "full"
    source: str = "everything that runs, one row through the LM head"
    parts: frozenset[str] = frozenset(PARTS)
    attention: bool = True
    lm_head: Literal["last", "all"] = "last"
    text: bool = True
    kv_text: bool = True
    mlp_matrices: int | None = None
    flops_per_mac: Literal[1, 2] = 2


FULL = Convention()


@dataclass(frozen=True)
class Relevance:
    """A paired text tower: `tokens` through `stack`, and the projection of every patch (in, out) into the common
    space."""

    stack: Stack
    tokens: int
    projection: tuple[int, int]


@dataclass(frozen=True)
class Counts:
    """Operations of one prompt.

    macs: by part. visual: visual tokens in each language layer. text: text tokens. kv_bytes: cache after prefill.
    flops_per_mac: see `Convention`.
    """

    convention: str
    macs: Mapping[str, int]
    visual: tuple[int, ...]
    text: int
    kv_bytes: int
    flops_per_mac: int

    @property
    def total_macs(self) -> int:
        """Sum over the parts."""
        return sum(self.macs.values())

    @property
    def flops(self) -> int:
        """What the convention calls FLOPs."""
        return self.flops_per_mac * self.total_macs

    @property
    def llm_macs(self) -> int:
        """The language model alone: what pruning shrinks."""
        return sum(self.macs[p] for p in ("llm_linear", "llm_attention", "lm_head"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "convention": self.convention,
            "flops": self.flops,
            "macs": self.total_macs,
            "macs_by_part": dict(self.macs),
            "visual_tokens": self.visual[0] if len(set(self.visual)) == 1 else list(self.visual),
            "text_tokens": self.text,
            "kv_bytes": self.kv_bytes,
        }


def count(
    config: Any,
    picture: Visual,
    *,
    kept: int | Sequence[int] | None = None,
    text: int = 80,
    relevance: Relevance | None = None,
    selection_macs: int = 0,
    bytes_per_value: int = 2,
    convention: Convention = FULL,
) -> Counts:
    """Operations and cache of one prompt with one picture.

    Args:
        config: a vision-language config of Transformers. picture: its visual side, from `visual`.
        kept: visual tokens that the language model sees: one number, one per layer (see `schedules`), or None for all.
        text: text tokens of the prompt. relevance: the text tower, where the method reads relevance.
        selection_macs: matrix products of the selection itself. bytes_per_value: of the cache's dtype.

    Raises:
        UsageError: a schedule of the wrong length, or fewer than no text tokens.
    """
    if text < 0:
        raise UsageError(f"a prompt cannot have {text} text tokens: give 0 or more.")
    llm, tower = language(config), vision(config)
    given = picture.tokens if kept is None else kept
    layers = [given] * llm.layers if isinstance(given, int) else list(given)
    if len(layers) != llm.layers:
        raise UsageError(f"the schedule has {len(layers)} entries for {llm.layers} language layers.")
    lengths = [n + (text if convention.text else 0) for n in layers]
    rows = 1 if convention.lm_head == "last" and config.model_type not in ALL_ROWS else lengths[-1]
    queries = [rows if layer.shared else n for n, layer in zip(lengths, llm.stack)]
    macs = {
        "vision_tower": _tower(tower, picture, convention.attention),
        "projector": sum(r * a * b for r, a, b in picture.projector),
        "text_tower": 0,
        "selection": selection_macs,
        "llm_linear": lengths[0] * llm.entry
        + sum(q * layer.linear(llm.width, convention.mlp_matrices) for q, layer in zip(queries, llm.stack)),
        "llm_attention": sum(layer.mixer.mixing(n, q) for n, q, layer in zip(lengths, queries, llm.stack))
        if convention.attention
        else 0,
        "lm_head": rows * llm.width * llm.vocabulary,
    }
    if relevance is not None:
        s, n = relevance.stack, relevance.tokens
        attention = s.attention([n]) if convention.attention else 0
        macs["text_tower"] = s.layers * (n * s.linear() + attention)
        macs["selection"] += picture.tokens * relevance.projection[0] * relevance.projection[1]
    cached = [n + (text if convention.kv_text else 0) for n in layers]
    return Counts(
        convention=convention.name,
        macs={part: (macs[part] if part in convention.parts else 0) for part in PARTS},
        visual=tuple(layers),
        text=text,
        kv_bytes=kv_bytes(llm, cached, bytes_per_value),
        flops_per_mac=convention.flops_per_mac,
    )


def kv_bytes(llm: Decoder, tokens: Sequence[int], bytes_per_value: int = 2) -> int:
    """Bytes of the cache after a prompt that has `tokens` entries in each layer.

    Windows hold no more than they see, recurrent layers a state of constant size, layers that share keys nothing.
    """
    return sum(layer.mixer.cache_bytes(n, bytes_per_value) for n, layer in zip(tokens, llm.stack))


def _tower(tower: Stack, picture: Visual, attention: bool) -> int:
    rows = sum(picture.sequences)
    macs = picture.patches * picture.patch_inputs * tower.width + tower.layers * rows * tower.linear()
    if picture.pooled:  # one query per sequence reads all its rows
        count, d = len(picture.sequences), tower.width
        macs += count * 2 * d * d + rows * 2 * d * d + count * 2 * d * tower.mlp + (2 * d * rows if attention else 0)
    if attention:
        macs += picture.full_layers * tower.attention(picture.sequences)
        macs += (tower.layers - picture.full_layers) * tower.attention(picture.windows)
    return macs
