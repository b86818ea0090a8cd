"""True-size configs made narrow and shallow for `--pretend`: the same classes, pictures and token counts, in seconds on
a CPU. Head sizes stay, because multi-dimensional RoPE is cut by them."""

from __future__ import annotations

from typing import Any

from fsr.profiling.configs import clip_text, named

WIDTH, HEAD, LAYERS = 256, 128, 2


def tiny(name: str) -> Any:
    """The named config with two layers of 256 columns on both sides."""
    config = named(name)
    text = config.get_text_config()
    heads = WIDTH // HEAD
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = WIDTH, 2 * WIDTH, LAYERS
    text.num_attention_heads, text.num_key_value_heads = heads, min(heads, text.num_key_value_heads)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:LAYERS]
    if hasattr(text, "max_window_layers"):
        text.max_window_layers = LAYERS
    vision = config.vision_config
    for field, value in (
        ("hidden_size", 64),
        ("intermediate_size", 128),
        ("num_attention_heads", 4),
        ("num_heads", 4),
        ("num_hidden_layers", 3),
        ("depth", 3),
        ("out_hidden_size", WIDTH),
        ("fullatt_block_indexes", [1, 2]),
        ("deepstack_visual_indexes", [0, 1]),
    ):
        if hasattr(vision, field):
            setattr(vision, field, value)
    return config


def tiny_text_tower() -> Any:
    """What pairs with the narrow CLIP tower."""
    config = clip_text()
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 2
    config.num_attention_heads, config.projection_dim = 4, 32
    return config
