"""Gemma 3n: a convolutional tower (MobileNet v5) whose last map is the raster of tokens, 16 x 16.

There is no attention whose queries and keys could be read, so there is no saliency: methods that read features, and
relevance from the language model, work. Sound is left alone. Layers look up embeddings of their own by token id, which
follow the shortened `input_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsr.adapters.base import Adapter, Encoded, Modality, PatchHead, TowerStates, Units
from fsr.adapters.containers import entries
from fsr.adapters.picture_inputs import by_row
from fsr.adapters.registry import register
from fsr.errors import UnsupportedModelError
from fsr.tokens import Geometry, VisualTokens

__all__ = ["Gemma3nAdapter"]


@register
class Gemma3nAdapter(Adapter):
    """Row i of the features is cell i of the tower's last map."""

    name = "gemma3n"
    model_types = frozenset({"gemma3n"})
    paired_text_tower = False
    chunked_prefill = False  # Transformers cannot cut the features of timm's towers

    def apart(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See `Adapter.apart`."""
        return by_row(self._vision_arguments(inputs))

    def tapped_layers(self) -> dict[str, int]:
        """None."""
        return {}

    def _encode(
        self,
        modality: Modality,
        given: dict[str, Any],
        inputs: Mapping[str, Any],
        signals: frozenset[str],
        patch_layer: int,
        patch_head: PatchHead | None = None,
    ) -> Encoded:
        if signals:
            raise UnsupportedModelError(
                f"the tower of Gemma 3n is convolutional: there is no {' or '.join(sorted(signals))} to read. "
                "'divprune', 'farthest' and 'uniform-grid' do without; 'cdpruner' with relevance='first-layer' follows "
                "the question."
            )
        return super()._encode(modality, given, inputs, signals, patch_layer, patch_head)

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Features and their raster."""
        rows, cols = output.last_hidden_state.shape[-2:]
        features = entries(output.pooler_output)
        return Units([VisualTokens(f, geometry=Geometry.raster(rows, cols, f.device)) for f in features], None)
