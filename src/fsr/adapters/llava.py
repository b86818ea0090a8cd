"""LLaVA-1.5 (and every `llava` checkpoint whose tower is a plain ViT with one fixed grid)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsr.adapters.base import Adapter, Modality, TowerStates, Units
from fsr.adapters.containers import entries
from fsr.adapters.picture_inputs import by_row
from fsr.adapters.registry import register
from fsr.errors import UnsupportedModelError
from fsr.tokens import Geometry, VisualTokens

__all__ = ["LlavaAdapter"]


@register
class LlavaAdapter(Adapter):
    """One picture is one tile: row i of the features is patch i in raster order."""

    name = "llava"
    model_types = frozenset({"llava"})

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """A Pixtral tower has no fixed grid: `mistral3` knows it."""
        vision = getattr(getattr(model, "config", None), "vision_config", None)
        return super().matches(model) and getattr(vision, "model_type", None) != "pixtral"

    def apart(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See `Adapter.apart`."""
        return by_row(self.vision_arguments(inputs))

    @property
    def feature_layer(self) -> int:
        """Index of the hidden state that the language model reads (of several: the last)."""
        layer = self.model.config.vision_feature_layer
        return layer if isinstance(layer, int) else layer[-1]

    @property
    def saliency_layer(self) -> int:
        """The attention layer whose output the language model reads: hidden state 0 is the embedding, so i means layer
        i - 1."""
        return self.feature_layer if self.feature_layer < 0 else self.feature_layer - 1

    @property
    def last_is_raw(self) -> bool:
        """True if the tower's `last_hidden_state` is the residual stream itself (CLIP), not its final norm (SigLIP)."""
        return bool(self.vision_tower.config.model_type == "clip_vision_model")  # type: ignore[union-attr]

    def wants_hidden_states(self, signals: frozenset[str], patch_layer: int) -> bool:
        """Recent releases return only the hidden state they read, and `last_hidden_state` always."""
        at_hand = patch_layer in (-1, self.feature_layer) if self.last_is_raw else False
        return "relevance" in signals and not at_hand

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Features are in patch order already; with the strategy "full" row 0 is [CLS], a structural row."""
        features = entries(output.pooler_output)
        tower_config: Any = self.vision_tower.config
        pixels, patch = inputs["pixel_values"], tower_config.patch_size
        rows, cols = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        extra_rows = features[0].shape[0] - rows * cols
        if extra_rows not in (0, 1):
            raise UnsupportedModelError(
                f"{features[0].shape[0]} features for a grid of {rows} x {cols} patches: this LLaVA's vision tower "
                f"({type(self.vision_tower).__name__}) needs an adapter of its own."
            )

        def rows_of(value: Tensor | None, i: int) -> Tensor | None:
            if value is None or not extra_rows:
                return None if value is None else value[i]
            blank = torch.full_like(value[i][:1], torch.nan).expand(extra_rows, *value.shape[2:])
            return torch.cat([blank, value[i]])

        encoder = self._hidden(output, self.feature_layer) if "encoder" in tower.signals else None
        patches = None
        if "relevance" in tower.signals:
            patches = tower.read_patches(self._hidden(output, tower.patch_layer))
        tokens, states = [], []
        for i, f in enumerate(features):
            geometry = Geometry.raster(rows, cols, f.device)
            structural = None
            if extra_rows:
                head = torch.full((extra_rows,), -1, device=f.device)
                geometry = Geometry(
                    torch.cat([torch.full((extra_rows, 4), torch.nan, device=f.device), geometry.boxes]),
                    torch.cat([head, geometry.tile]),
                    torch.cat([torch.zeros_like(head), geometry.frame]),
                )
                structural = geometry.tile < 0
            named = {name: rows_of(value, i) for name, value in tower.extra.items()}
            tokens.append(
                VisualTokens(
                    features=f,
                    saliency=rows_of(tower.saliency, i),
                    geometry=geometry,
                    structural=structural,
                    encoder=rows_of(encoder, i),
                    extra={k: v for k, v in named.items() if v is not None},
                )
            )
            states.append(rows_of(patches, i))
        return Units(tokens, None if patches is None else [s for s in states if s is not None])

    def _hidden(self, output: Any, layer: int) -> Tensor:
        """A hidden state of the tower without [CLS], [T, P, C]; the last one as it is before `post_layernorm`."""
        state = output.last_hidden_state if layer == -1 and self.last_is_raw else output.hidden_states[layer]
        return state[:, int(self.has_cls) :].detach()
