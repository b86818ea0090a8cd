"""Models that no adapter knows by name and that have no vision tower: patches go into the language model as they are,
or as the codes of a picture.

There is no attention to read, so there is no saliency; methods that cover pictures by features alone work.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch

from fsr.adapters.base import Encoded, Modality, PatchHead, TowerStates, Units
from fsr.adapters.containers import split_rows
from fsr.adapters.generic import FEATURES_ALONE, TOWERS, UnknownModel
from fsr.adapters.vision_call import call_vision
from fsr.errors import UnsupportedModelError
from fsr.tokens import Geometry, VisualTokens

__all__ = ["GenericPlainAdapter"]


class GenericPlainAdapter(UnknownModel):
    """Where the processor gives the place (x, y) of every patch (`image_position_ids`), each is one token."""

    name = "generic, without a tower"
    announcement = "no adapter knows this model, and it has no vision tower: there is no saliency (generic adapter)"

    @classmethod
    def matches(cls, model: Any) -> bool:
        """No tower by any name that is known."""
        return super().matches(model) and not any(getattr(cls(model).base, n, None) is not None for n in TOWERS)

    def _encode(
        self,
        modality: Modality,
        given: dict[str, Any],
        inputs: Mapping[str, Any],
        signals: frozenset[str],
        patch_layer: int,
        patch_head: PatchHead | None = None,
    ) -> Encoded:
        if lacking := sorted(signals - {"relevance"}):
            why = f"without a tower there is no {' or '.join(lacking)}"
            raise UnsupportedModelError(f"{FEATURES_ALONE}: {self.refusal(why)}")
        started = perf_counter()
        output = call_vision(lambda: self.features_of(modality, given), given)
        timings = {"vision_tower": 1e3 * (perf_counter() - started), "saliency": 0.0}
        units = self.units(modality, output, TowerStates(None, {}, signals, patch_layer), inputs)
        return Encoded(modality, units.tokens, None, output, timings)

    def placed(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Boxes from the places, where they are given."""
        at = inputs.get("image_position_ids")
        if at is None:
            raise self.refusal("it has no vision tower, and where its tokens lie is not given")
        counts = (at != -1).all(-1).sum(-1).tolist()
        pooled = output.pooler_output
        have = sum(e.flatten(0, -2).shape[0] for e in pooled)
        if have != sum(counts):
            raise self.refusal(f"{sum(counts)} patches give {have} tokens")
        tokens = []
        for features, places, n in zip(split_rows(pooled, counts), at, counts):
            real = places[(places != -1).all(-1)].float()
            low = torch.stack([real[:, 0], real[:, 1]], dim=-1) / (real.amax(0) + 1)
            boxes = torch.cat([low, low + 1 / (real.amax(0) + 1)], dim=-1).to(features.device)
            zero = torch.zeros(n, dtype=torch.long, device=features.device)
            tokens.append(VisualTokens(features=features, saliency=None, geometry=Geometry(boxes, zero, zero)))
        return Units(tokens, None)
