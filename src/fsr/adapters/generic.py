"""Models that no adapter knows by name: what can be read off their structure, or a clear refusal.

Three things are checked and nothing is guessed: the model takes features from outside and counts positions in one
dimension, its tower is a
plain ViT whose patches fill a square, and each token is one patch or one square block of patches. Saliency is
attention received, there is
no relevance, and every report says that this adapter was at work.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import nn

from fsr.adapters.base import Adapter, Modality, TowerStates, Units
from fsr.adapters.containers import entries
from fsr.errors import UnsupportedModelError
from fsr.signals.attention import LayerStates, received_attention
from fsr.tokens import Geometry, VisualTokens

__all__ = ["GenericAdapter"]


class GenericAdapter(Adapter):
    """Pictures only; every entry of the features (or tile) is a picture of its own."""

    name = "generic"
    paired_text_tower = False
    chunked_prefill = False
    announcement = (
        "no adapter knows this model: saliency is received attention and tokens are taken for a square raster of "
        "patches (generic adapter)"
    )

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Structure, not name."""
        base: Any = getattr(model, "model", None)
        if base is None or "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
            return False
        one_dimensional = not hasattr(base, "get_rope_index")
        picture = hasattr(base, "get_image_features") and getattr(model.config, "image_token_id", None) is not None
        tower = next((t for t in ("vision_tower", "vision_model", "visual") if hasattr(base, t)), None)
        return bool(one_dimensional and picture and tower)

    def signal_of(self, name: str, states: LayerStates) -> torch.Tensor:
        """Received attention of patches, whatever stands in front of them."""
        if not name.endswith("saliency"):
            return super().signal_of(name, states)
        states = states.one_head() if name.startswith("last") else states
        got = received_attention(states.q, states.k, states.scale, states.segments, states.mask)
        return got[:, int(self.has_cls) :]

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Scores averaged over the square block of patches behind each token."""
        tokens = []
        pictures = entries(output.pooler_output)
        for i, features in enumerate(pictures):
            side = self._side(features.shape[0], "tokens")
            extra = {}
            for name, value in {"saliency": tower.saliency, **tower.extra}.items():
                if value is None:
                    continue
                if value.shape[0] != len(pictures):
                    raise self._refusal(f"its tower saw {value.shape[0]} tiles for {len(pictures)} pictures")
                block = self._side(value.shape[1], "patches") / side
                if block != int(block):
                    raise self._refusal(f"{value.shape[1]} patches do not fall into {features.shape[0]} square blocks")
                flat = value[i].float().reshape(value.shape[1], -1).T.unflatten(1, (side * int(block), -1))
                extra[name] = nn.functional.avg_pool2d(flat, int(block)).flatten(1).T.squeeze(-1)
            tokens.append(
                VisualTokens(
                    features=features,
                    saliency=extra.pop("saliency", None),
                    geometry=Geometry.raster(side, side, features.device),
                    extra=extra,
                )
            )
        return Units(tokens, None)

    def _side(self, count: int, what: str) -> int:
        side = isqrt(count)
        if side * side != count:
            raise self._refusal(f"its {count} {what} per picture are no square")
        return side

    def _refusal(self, why: str) -> UnsupportedModelError:
        kind = getattr(self.model.config, "model_type", type(self.model).__name__)
        return UnsupportedModelError(
            f"model type {kind!r} has no adapter and the generic one cannot take it: {why}. Write an adapter "
            "(`fsr.adapters.base.Adapter`, entry point `fsr.adapters`)."
        )
