"""Gemma 3n: a convolutional tower (MobileNet v5) whose last map is the raster of tokens, 16 x 16.

Its last stage attends: every cell of a map of 24 x 24 is a query and a key. Saliency is the attention received there,
averaged over the part of each cell that a token covers, as the tower averages the map itself. Earlier layers attend to
maps of another size than their own and give no signal. Sound is left alone. Layers of the language model look up
embeddings of their own by token id, which follow the shortened `input_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, lcm
from typing import Any

from torch import Tensor
from torch.nn.functional import avg_pool2d

from fsr.adapters.base import Adapter, Encoded, Modality, PatchHead, TowerStates, Units
from fsr.adapters.containers import entries
from fsr.adapters.picture_inputs import by_row
from fsr.adapters.registry import register
from fsr.errors import UnsupportedModelError
from fsr.signals.map_attention import full_map_attention
from fsr.signals.tap import attention_layers
from fsr.tokens import Geometry, VisualTokens

__all__ = ["Gemma3nAdapter", "mean_over_cells"]


@register
class Gemma3nAdapter(Adapter):
    """Row i of the features is cell i of the tower's last map."""

    name = "gemma3n"
    model_types = frozenset({"gemma3n"})
    paired_text_tower = False
    chunked_prefill = False  # Transformers cannot cut the features of timm's towers

    def apart(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """See `Adapter.apart`."""
        return by_row(self.vision_arguments(inputs))

    def tapped_layers(self) -> dict[str, int]:
        """The last layers of the last stage; none where a tower has no full attention."""
        full = [i for i, layer in enumerate(attention_layers(self.vision_tower)) if full_map_attention(layer)]
        if not full:
            return {}
        second = full[-2:][0]
        return {"saliency": second, "keys": second, "last_saliency": full[-1], "last_keys": full[-1]}

    def _encode(
        self,
        modality: Modality,
        given: dict[str, Any],
        inputs: Mapping[str, Any],
        signals: frozenset[str],
        patch_layer: int,
        patch_head: PatchHead | None = None,
    ) -> Encoded:
        if lacking := sorted(signals - {"relevance", "encoder", *self.tapped_layers()}):
            raise UnsupportedModelError(
                f"the tower of Gemma 3n is convolutional: there is no {' or '.join(lacking)} to read. 'divprune' and "
                "'uniform-grid' do without; 'cdpruner' with relevance='first-layer' follows the question."
            )
        return super()._encode(modality, given, inputs, signals, patch_layer, patch_head)

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Features, signals and their raster."""
        last = output.last_hidden_state
        rows, cols = last.shape[-2:]
        sides = inputs["pixel_values"].shape[-2:]
        signals = {n: s for n, s in {"saliency": tower.saliency, **tower.extra}.items() if s is not None}
        read = {n: mean_over_cells(s, (sides[0], sides[1]), (rows, cols)) for n, s in signals.items()}
        tokens = []
        for i, features in enumerate(entries(output.pooler_output)):
            mine = {name: value[i] for name, value in read.items()}
            tokens.append(
                VisualTokens(
                    features=features,
                    saliency=mine.pop("saliency", None),
                    geometry=Geometry.raster(rows, cols, features.device),
                    encoder=last[i].flatten(1).T if "encoder" in tower.signals else None,
                    extra=mine,
                )
            )
        return Units(tokens, None)


def mean_over_cells(value: Tensor, sides: tuple[int, int], raster: tuple[int, int]) -> Tensor:
    """A signal of the cells of one raster, averaged over the part of each that a cell of another covers.

    value: [B, T] or [B, T, C], row by row over a picture of `sides` pixels. Returns [B, N] or [B, N, C] for the N cells
    of `raster`.

    Raises:
        UnsupportedModelError: T cells are no raster of the picture's shape.
    """
    cells = value.shape[1]
    high = isqrt(cells * sides[0] // sides[1])
    if not high or cells % high:
        raise UnsupportedModelError(
            f"the tower attends over {cells} cells, which are no raster of {sides[0]} x {sides[1]} pixels: use a "
            "method that needs no saliency ('divprune', 'uniform-grid')."
        )
    wide = cells // high
    planes = value.float().unflatten(1, (high, wide))
    planes = planes[..., None] if value.dim() == 2 else planes
    fine = lcm(high, raster[0]), lcm(wide, raster[1])
    planes = planes.repeat_interleave(fine[0] // high, 1).repeat_interleave(fine[1] // wide, 2).permute(0, 3, 1, 2)
    pooled = avg_pool2d(planes, (fine[0] // raster[0], fine[1] // raster[1])).flatten(2)
    return pooled[:, 0] if value.dim() == 2 else pooled.transpose(1, 2)
