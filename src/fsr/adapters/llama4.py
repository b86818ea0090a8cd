"""Llama 4: tiles of one picture in placeholder runs of their own, 2 x 2 patches of each made one token (pixel shuffle),
[CLS] behind the patches.

Transformers takes the features of this family in front of its last projection, which has no bias. Methods see them
behind it, like the language model; kept rows are handed over as they were, and what a method merged is led back through
the projection.

The prompt writes `<|patch|> ... <|tile_x_separator|>` after each tile, `<|tile_y_separator|>` after each row of tiles,
and the whole view last, behind `<|image|>`. Pictures and their grids are read off that frame without knowing any token
by name: what stands before the last run of a row is `<|image|>`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from fsr.adapters.base import Modality, TowerStates, Units
from fsr.adapters.containers import alike, marked_pruned, rebuild, split_rows
from fsr.adapters.packing import Channels, Layout, PackedAdapter, Window, centres, placeholder_runs
from fsr.adapters.registry import register
from fsr.errors import FeatureError, UnsupportedModelError, UsageError, counted
from fsr.signals.attention import LayerStates
from fsr.signals.weights import weight_of
from fsr.tokens import Selection

__all__ = ["Llama4Adapter", "tile_grids"]

RAW = "unprojected"  # among the extra signals of a picture: its features in front of the last projection


@register
class Llama4Adapter(PackedAdapter):
    """Crops lie on a canvas that the picture fills from the top left; what is black beyond it is padding."""

    name = "llama4"
    model_types = frozenset({"llama4"})
    paired_text_tower = False
    chunked_prefill = False  # Transformers cannot cut its features

    def __init__(self, model: nn.Module) -> None:
        import transformers.models.llama4.modeling_llama4 as source

        super().__init__(model)
        returned = getattr(source, "MoeCausalLMOutputWithPast", source.Llama4CausalLMOutputWithPast)
        if hasattr(source.Llama4CausalLMOutputWithPast, "image_outputs") and not hasattr(returned, "image_outputs"):
            raise UnsupportedModelError(
                f"Transformers {transformers.__version__} itself cannot run Llama 4, not even on text (its forward "
                "reads `image_outputs`, which its language model does not return): use another release."
            )

    def check_settings(self, setting: Callable[[str], Any]) -> None:
        """Beams need features to be repeated, and Transformers repeats none of this family."""
        if max(setting("num_beams") or 1, setting("num_return_sequences") or 1) > 1:
            raise UsageError(
                "Transformers does not repeat the pictures of Llama 4 for beams or several sequences (unpruned calls "
                "fail as well): repeat the prompt with its pictures instead."
            )

    def signal_of(self, name: str, states: LayerStates) -> Tensor:
        """The last row is [CLS]; everybody else looks for it in the first."""
        return super().signal_of(name, replace(states, q=states.q.roll(1, 2), k=states.k.roll(1, 2)))

    def hidden(self, output: Any, layer: int) -> Tensor:
        """States of the patches."""
        return output.hidden_states[layer][:, :-1].detach()

    def wants_hidden_states(self, signals: frozenset[str], patch_layer: int) -> bool:
        """None comes by itself."""
        return bool(signals & {"relevance", "encoder"})

    def features_of(self, modality: Modality, given: Mapping[str, Any]) -> Any:
        """With the last projection, as the language model sees them."""
        output = super().features_of(modality, given)
        output.pooler_output = self.base.multi_modal_projector(output.last_hidden_state)
        return output

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Crops in raster order, then the whole view (tile 0)."""
        pixels = inputs["pixel_values"]
        high, wide = self.patch_size
        whole_y, whole_x = centres(pixels.shape[-2] // high, pixels.shape[-1] // wide, pixels.device)
        ys, xs, tiles, windows = [], [], [], []
        grids = self._grids(inputs)
        for (rows, cols), group in zip(grids, pixels.split([r * c + 1 for r, c in grids])):
            for number in range(rows * cols):
                ys.append((number // cols + whole_y) / rows)
                xs.append((number % cols + whole_x) / cols)
                tiles.append(number + 1)
            ys.append(whole_y)
            xs.append(whole_x)
            tiles.append(0)
            windows.append(unpadded(group[:-1], rows, cols))
        tile = torch.tensor(tiles, device=pixels.device)
        return Layout(torch.stack(ys), torch.stack(xs), tile, torch.zeros_like(tile), windows=windows)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The tower's own `pixel_shuffle` puts the channels of neighbouring patches side by side: [N, m^2, C]."""
        from transformers.models.llama4.modeling_llama4 import pixel_shuffle

        shuffled = pixel_shuffle(channels.value, self.model.config.vision_config.pixel_shuffle_ratio)
        tokens = shuffled.unflatten(-1, (-1, channels.value.shape[-1]))
        return [group.flatten(0, 1) for group in tokens.split([r * c + 1 for r, c in self._grids(inputs)])]

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """With the unprojected features beside each picture, for `hand_over`."""
        found = super().units(modality, output, tower, inputs)
        raw = split_rows(output.last_hidden_state, [unit.count for unit in found.tokens])
        tokens = [replace(unit, extra={**unit.extra, RAW: r}) for unit, r in zip(found.tokens, raw)]
        return Units(tokens, found.patches)

    def hand_over(self, encoded: Any, selections: list[Selection], samples: Sequence[int] | None = None) -> Any:
        """In front of the last projection, in the container of the family's own features (`last_hidden_state`)."""
        kept = []
        for unit, chosen in zip(encoded.units, selections):
            rows = chosen.rows.to(unit.features.device)
            kept.append(self._led_back(unit.extra[RAW][rows], unit.features[rows], chosen.features))
        made = rebuild(encoded.output, kept, [s.rows for s in selections], [u.count for u in encoded.units], samples)
        return marked_pruned(alike(made, last_hidden_state=made.pooler_output))

    def _led_back(self, raw: Tensor, own: Tensor, features: Tensor) -> Tensor:
        """Rows [K, C] whose projection is `features` [K, D]: `raw` where nothing was merged (`own` is its projection).

        Least squares elsewhere: exact for merged features, which are weighted means of projected ones.
        """
        merged = (features != own).any(-1)
        if not bool(merged.any()):
            return raw
        last = self.base.multi_modal_projector.linear_1
        weight = weight_of(last) if last.weight.is_meta else last.weight  # its graph belongs to training
        step = torch.linalg.lstsq(weight.to(features.device).float(), (features - own)[merged].float().T).solution.T
        return raw.index_add(0, merged.nonzero().squeeze(-1), step.to(raw))

    def _grids(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        grids = tile_grids(inputs["input_ids"], self.model.config.image_token_id)
        if (places := sum(r * c + 1 for r, c in grids)) != len(inputs["pixel_values"]):
            raise FeatureError(
                f"the prompt has places for {counted(places, 'tile')}, of which {len(inputs['pixel_values'])} came: "
                "make prompt and pixels with the same processor call."
            )
        return grids


def tile_grids(ids: Tensor, token: int) -> list[tuple[int, int]]:
    """Rows and columns of the crops of every picture in scatter order; (0, 0) where there is a whole view only."""
    grids: list[tuple[int, int]] = []
    for row in range(len(ids)):
        text = ids[row].tolist()
        runs = [(start, end) for _, start, end in placeholder_runs(ids[row : row + 1], token)]
        crops: list[int] = []  # what stands behind each crop of the picture that is being read
        for start, end in runs:
            behind = text[end] if end < len(text) else -1
            if start == 0 or text[start - 1] != text[runs[-1][0] - 1]:
                crops.append(behind)
                continue
            lines = crops.count(crops[-1]) if crops else 0
            if crops and len(crops) == lines and len(set(crops)) == 1:
                lines = len(crops)  # one column: every crop ends a row
            if crops and len(crops) % lines:
                raise FeatureError(
                    f"{len(crops)} crops of a picture stand in {lines} lines: the prompt is not this family's."
                )
            grids.append((lines, len(crops) // lines) if crops else (0, 0))
            crops = []
    return grids


def unpadded(crops: Tensor, rows: int, cols: int) -> Window:
    """(y0, x0, y1, x1) of the picture on the canvas of its crops [rows * cols, 3, S, S]: whole, or up to the black at
    the right and bottom ends."""
    if not len(crops):
        return 0.0, 0.0, 1.0, 1.0
    canvas = crops.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    seen = (canvas > canvas.amin()).any(0)
    lines, columns = (seen.any(d).nonzero() for d in (1, 0))
    if not len(lines):
        return 0.0, 0.0, 1.0, 1.0
    return 0.0, 0.0, (int(lines[-1]) + 1) / canvas.shape[1], (int(columns[-1]) + 1) / canvas.shape[2]
