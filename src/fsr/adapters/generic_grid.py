"""Models that no adapter knows by name whose pictures come with their grid (`image_grid_thw`): any size, packed into
one sequence, m x m patches merged.

Asked of the model itself at the first picture (`provenance`): whether the patches of a token follow one another or lie
in a raster, and which tokens end rows (`arrangement`). Clips are taken where they come with their grid in the same way.
Positions come from the model's own function where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_position_ids

from fsr.adapters.arrangement import Arrangement, Grid, arrangement_of
from fsr.adapters.base import PIXELS, Modality, TowerStates, Units
from fsr.adapters.generic import UnknownModel
from fsr.adapters.packing import Channels, Layout, PackedAdapter, centres
from fsr.errors import FeatureError, UsageError
from fsr.signals.tap import attention_layers

__all__ = ["GenericAxesAdapter", "GenericGridAdapter"]


class GenericGridAdapter(UnknownModel, PackedAdapter):
    """Positions count in one dimension."""

    name = "generic grid"
    clips = True
    announcement = (
        "no adapter knows this model: saliency is received attention over the picture's grid (generic grid adapter)"
    )

    @classmethod
    def matches(cls, model: Any) -> bool:
        """As for all, and `get_image_features` takes a grid."""
        return super().matches(model) and "image_grid_thw" in cls(model).feature_arguments("image")

    def tapped_layers(self) -> dict[str, int]:
        """Attention is only read where it is full, if the tower says where that is."""
        layers, depth = super().tapped_layers(), len(attention_layers(self.vision_tower))
        if not depth:
            return layers
        full = getattr(self.vision_tower, "fullatt_block_indexes", None) or range(depth)
        return {n: min(full, key=lambda i: (abs(i - layer % depth), i)) for n, layer in layers.items()}

    def placed(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Checked first, see `UnknownModel`."""
        self._arrangement(modality, inputs, [e.flatten(0, -2).shape[0] for e in output.pooler_output])
        return PackedAdapter.units(self, modality, output, tower, inputs)

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Rows and columns in the tower's order."""
        known = self._arrangement(modality, inputs)
        device = self._pixels(modality, inputs).device
        ys, xs, frames = [], [], []
        for t, h, w in self._grids(modality, inputs):
            y, x = (v.repeat(t) for v in centres(h, w, device))
            if not known.raster:
                at = get_vision_position_ids(torch.tensor([[t, h, w]], device=device), known.merge).float() + 0.5
                y, x = at[:, 0] / h, at[:, 1] / w
            ys.append(y)
            xs.append(x)
            frames.append(torch.arange(t, device=device).repeat_interleave(h * w))
        y, x, frame = (torch.cat(v)[None] for v in (ys, xs, frames))
        return Layout(y, x, torch.zeros_like(frame), frame)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The m^2 patches of every token, [N, m^2, C]."""
        known, grids = self._arrangement(modality, inputs), self._grids(modality, inputs)
        parts = channels.value[0].split([t * h * w for t, h, w in grids])
        return [known.pack(value, grid) for grid, value in zip(grids, parts)]

    def hidden(self, output: Any, layer: int) -> Tensor:
        """[1, S, C] where the tower hands out its packed states as they are."""
        state = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return state.detach() if state.dim() == 3 else state.detach().unsqueeze(0)

    def _grids(self, modality: Modality, inputs: Mapping[str, Any]) -> list[Grid]:
        """(t, h, w) in patches of every picture or clip."""
        name = f"{modality}_grid_thw"
        if inputs.get(name) is None:
            raise FeatureError(f"pictures of any size need {name}: use the processor of this model.")
        return [(int(t), int(h), int(w)) for t, h, w in inputs[name].tolist()]

    def _pixels(self, modality: Modality, inputs: Mapping[str, Any]) -> Tensor:
        return next(inputs[n] for n in self.feature_arguments(modality) & PIXELS if inputs.get(n) is not None)

    def _arrangement(
        self, modality: Modality, inputs: Mapping[str, Any], counts: list[int] | None = None
    ) -> Arrangement:
        """Asked of the model once, and checked for every picture whose number of tokens is given.

        Raises:
            UnsupportedModelError: its tokens are made in another way.
        """
        grids = self._grids(modality, inputs)
        patches = [t * h * w for t, h, w in grids]

        def find() -> Arrangement:
            owner = self.owners(modality, inputs).flatten()
            if len(owner) != sum(patches):
                raise self.refusal(f"its tower's states have {len(owner)} rows for {sum(patches)} patches")
            if (found := arrangement_of(owner, grids, counts or [])) is None:
                raise self.refusal(
                    f"grids of {patches} patches give {counts} tokens in an order of its own, not one for each m x m "
                    "of them row by row"
                )
            return found

        # A picture of one row does not tell the end of a row from its own.
        known: Arrangement = self.remembered((modality, max(h * t for t, h, _ in grids) > 2), find)
        if counts is not None and not all(known.fits(g, n) for g, n in zip(grids, counts)):
            raise self.refusal(f"grids of {patches} patches give {counts} tokens, which do not follow from them")
        return known


class GenericAxesAdapter(GenericGridAdapter):
    """Positions have several axes and come from the model's own `get_rope_index`."""

    name = "generic grid, multi-axial"
    multi_axial = True
    position_policy = "original"

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """As the model itself would number the whole prompt, [R, B, L]."""
        if inputs.get("mm_token_type_ids") is None:
            raise UsageError("positions of several axes need mm_token_type_ids: pass all that the processor returned.")
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        positions, _ = self.base.get_rope_index(
            **{n: inputs[n] for n in (*names, "attention_mask") if inputs.get(n) is not None}
        )
        return positions

    @torch.no_grad()
    def takes_text_row(self) -> bool:
        """Asked of the language model, on two tokens: some take their own axes and nothing else."""

        def ask() -> bool:
            words = self.model.get_input_embeddings()
            ids = torch.tensor([[1, 2]], device=words.weight.device)
            token_types = torch.zeros_like(ids)
            axes = self.base.get_rope_index(input_ids=ids, mm_token_type_ids=token_types)[0]
            above = torch.arange(2, device=axes.device).expand(1, 1, 2)
            try:
                self.model.get_decoder()(
                    inputs_embeds=words(ids), position_ids=torch.cat([above.to(axes), axes]), use_cache=False
                )
            except (RuntimeError, ValueError):
                return False
            return True

        return bool(self.remembered("text row", ask))
