"""The language model of a vision-language config, layer by layer: what one token costs in each, and what each leaves
in the cache.

Layers differ: three of four are recurrent in Qwen3.5, windows, head sizes and shared keys alternate in Gemma 4, and
mixtures of experts run the few experts that a token is sent to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsr.errors import UnsupportedModelError
from fsr.profiling.mixers import Attention, GatedDelta

__all__ = ["DECODERS", "Decoder", "Layer", "language"]


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    mixer: attention or the gated delta rule. feed_forward: inner width that one token runs through, all gated blocks
    together (of a mixture: its active and its shared experts). other: MACs per token of everything else, such as
    routers and the maps of per-layer embeddings. shared: reads keys and values of an earlier layer and writes none.
    """

    mixer: Attention | GatedDelta
    feed_forward: int
    other: int = 0
    shared: bool = False

    def linear(self, width: int, matrices: int | None = None) -> int:
        """MACs of all linear maps for one token. matrices: of a feed-forward block, 3 as they are all gated."""
        return self.mixer.projections(width) + (matrices or 3) * width * self.feed_forward + self.other


@dataclass(frozen=True)
class Decoder:
    """A language model.

    width: hidden size. stack: its layers. vocabulary: rows of the LM head. entry: MACs per token in front of the first
    layer (Gemma 4 projects the embeddings for all layers at once).
    """

    width: int
    stack: tuple[Layer, ...]
    vocabulary: int
    entry: int = 0

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.stack)


def language(config: Any) -> Decoder:
    """The decoder of a vision-language config.

    Raises:
        UnsupportedModelError: a decoder whose layers are not known here.
    """
    text = config.get_text_config()
    read = DECODERS.get(text.model_type)
    if read is None:
        raise UnsupportedModelError(
            f"operations of a {text.model_type!r} decoder are not known here: counts exist for "
            f"{', '.join(sorted(DECODERS))}."
        )
    return read(text)


def _attention(text: Any, index: int, **more: int) -> Attention:
    """The attention of one layer where all have the same heads."""
    heads = text.num_attention_heads
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    slides = window is not None if kinds is None else kinds[index] == "sliding_attention"
    return Attention(
        heads=heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        window=window if slides else None,
        **more,
    )


def _dense(text: Any) -> Decoder:
    """Attention and one gated block in every layer."""
    stack = tuple(Layer(_attention(text, i), text.intermediate_size) for i in range(text.num_hidden_layers))
    return Decoder(text.hidden_size, stack, text.vocab_size)


def _qwen3_moe(text: Any) -> Decoder:
    """Qwen3-VL and Qwen3-Omni with experts: dense are layers of `mlp_only_layers`, and those between sparse steps."""
    experts, dense_layers = text.num_experts, set(text.mlp_only_layers or ())

    def layer(i: int) -> Layer:
        if i in dense_layers or experts == 0 or (i + 1) % text.decoder_sparse_step:
            return Layer(_attention(text, i), text.intermediate_size)
        active = text.num_experts_per_tok * text.moe_intermediate_size
        return Layer(_attention(text, i), active, other=text.hidden_size * experts)

    return Decoder(text.hidden_size, tuple(map(layer, range(text.num_hidden_layers))), text.vocab_size)


def _glm_moe(text: Any) -> Decoder:
    """GLM-4.5V: dense layers first, then experts beside one that every token takes."""
    experts = text.n_routed_experts
    active = (text.num_experts_per_tok + text.n_shared_experts) * text.moe_intermediate_size

    def layer(i: int) -> Layer:
        if i < text.first_k_dense_replace:
            return Layer(_attention(text, i), text.intermediate_size)
        return Layer(_attention(text, i), active, other=text.hidden_size * experts)

    return Decoder(text.hidden_size, tuple(map(layer, range(text.num_hidden_layers))), text.vocab_size)


def _qwen3_5(text: Any) -> Decoder:
    """Qwen3.5 and 3.6: gated delta rule, gated attention in every fourth layer; experts beside a gated shared one."""
    delta = GatedDelta(
        key_heads=text.linear_num_key_heads,
        value_heads=text.linear_num_value_heads,
        key_dim=text.linear_key_head_dim,
        value_dim=text.linear_value_head_dim,
        kernel=text.linear_conv_kernel_dim,
    )
    if text.model_type == "qwen3_5_moe_text":
        inner = text.num_experts_per_tok * text.moe_intermediate_size + text.shared_expert_intermediate_size
        other = text.hidden_size * (text.num_experts + 1)  # the router, and the gate of the shared expert
    else:
        inner, other = text.intermediate_size, 0
    stack = tuple(
        Layer(delta if kind == "linear_attention" else _attention(text, i, query_maps=2), inner, other)
        for i, kind in enumerate(text.layer_types)
    )
    return Decoder(text.hidden_size, stack, text.vocab_size)


def _gemma4(text: Any) -> Decoder:
    """Gemma 4: windows and full attention with heads of different sizes, values that are the keys, layers that read
    the keys of earlier ones, embeddings per layer, experts beside the dense block."""
    width, per_layer, count = text.hidden_size, text.hidden_size_per_layer_input, text.num_hidden_layers

    def layer(i: int) -> Layer:
        slides, shared = text.layer_types[i] == "sliding_attention", i >= count - text.num_kv_shared_layers
        own = text.per_layer_config[i]
        maps = 1 if text.attention_k_eq_v and not slides else 2
        mixer = Attention(
            heads=text.num_attention_heads,
            head_dim=own.head_dim,
            kv_heads=own.num_key_value_heads,
            kv_maps=0 if shared else maps,
            window=text.sliding_window if slides else None,
        )
        inner = text.intermediate_size * (2 if text.use_double_wide_mlp and shared else 1)
        other = 2 * width * per_layer
        if text.enable_moe_block:
            inner += text.top_k_experts * text.moe_intermediate_size
            other += width * text.num_experts
        return Layer(mixer, inner, other, shared)

    return Decoder(width, tuple(map(layer, range(count))), text.vocab_size, entry=width * count * per_layer)


# Decoders whose feed-forward blocks are known to be gated (three matrices). Others are refused: a wrong guess would be
# off by a third.
_PLAIN = (
    "llama mistral ministral3 qwen2 qwen3 gemma gemma2 gemma3_text qwen2_vl_text qwen2_5_vl_text qwen3_vl_text "
    "qwen2_5_omni_text glm4v_text smollm3"
).split()
DECODERS: dict[str, Callable[[Any], Decoder]] = {
    **dict.fromkeys(_PLAIN, _dense),
    "qwen3_vl_moe_text": _qwen3_moe,
    "qwen3_omni_moe_text": _qwen3_moe,
    "glm4v_moe_text": _glm_moe,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5,
    "gemma4_text": _gemma4,
}
