"""Matrix products of a selection method itself, counted by running it once on random tokens (no model, no weights)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fsr.methods.base import Method
from fsr.profiling.shapes import Visual, vision
from fsr.tokens import Geometry, VisualTokens

__all__ = ["random_tokens", "selection_macs"]


def random_tokens(config: Any, picture: Visual, seed: int = 0) -> VisualTokens:
    """One picture's worth of random tokens with every signal that a method may ask for."""
    generator = torch.Generator().manual_seed(seed)
    n, hidden = picture.tokens, config.get_text_config().hidden_size
    tower = vision(config)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return VisualTokens(
        features=normal(n, hidden),
        saliency=normal(n).softmax(0),
        relevance=normal(n),
        geometry=Geometry.raster(*(picture.grid or (1, n))),
        encoder=normal(n, tower.width),
        extra={
            "keys": normal(n, tower.width // tower.heads),
            "last_keys": normal(n, tower.width),
            **{s: normal(n).softmax(0) for s in ("shallow_saliency", "first_saliency", "last_saliency")},
        },
    )


def selection_macs(method: Method, config: Any, picture: Visual) -> int:
    """MACs of the matrix products in one selection, as this library runs it on the CPU (symmetric products done
    once)."""
    tokens = random_tokens(config, picture)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        method([tokens])
    return counter.get_total_flops() // 2
