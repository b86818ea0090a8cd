"""Qwen2.5-VL, pruned inside vLLM: kept tokens keep their three-dimensional positions.

vLLM has a seam for models that drop tokens after encoding (made for its video pruning): such a model appends channels
to its features, and just before they are merged the runner hands them to `recompute_mrope_positions`. The seam is used
here with channels and a recomputation of our own. It is switched on by a video pruning rate so small that no video
token falls. (vLLM's helpers behind that seam are not used: text after a medium would advance by its width, and two
media in one chunk can overwrite each other's positions.)

Before encoding, the K placeholders of a picture all stand at its first position, and text goes on after the whole
grid, as if nothing were pruned. The recomputation only adds row and column to the kept tokens; the temporal axis, which
a picture does not move along, still tells where it began, so that it may run any number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from fsr.adapters.base import Adapter
from fsr.adapters.qwen2_vl import QwenVLAdapter
from fsr.errors import UnsupportedModelError
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.taps import watch
from fsr.serving.vllm.vision import PrunedVision, requests_of, view

__all__ = ["FSRQwen2_5_VLForConditionalGeneration", "pack_places", "unpack_places"]

# Drops no token of any video: 1 - rate is 1 in float64.
ALMOST_NOTHING = 1e-18
# Channels travel in the model's dtype, and bfloat16 knows whole numbers only up to 256: two digits per coordinate.
_BASE = 128
CHANNELS = 5


class Processor(PrunedProcessing, Qwen2_5_VLMultiModalProcessor):
    """The stock processor with fewer placeholders for pictures; videos are not pruned."""

    adapter_class: ClassVar[type[Adapter]] = QwenVLAdapter


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class FSRQwen2_5_VLForConditionalGeneration(PrunedVision, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with pruned pictures."""

    adapter_class: ClassVar[type[Adapter]] = QwenVLAdapter
    tower_name: ClassVar[str] = "visual"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if current_platform.is_cpu():
            from vllm.v1.worker.cpu_model_runner import CPUModelRunner

            if not hasattr(CPUModelRunner, "is_multimodal_pruning_enabled"):
                raise UnsupportedModelError(
                    "vLLM 0.32 never asks for positions of pruned tokens on a CPU: serve this model on a GPU, or prune "
                    "it with fsr.prune()."
                )
        vllm_config.model_config.multimodal_config.video_pruning_rate = ALMOST_NOTHING
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def signal_layers(self) -> dict[str, int]:
        """As `QwenVLAdapter` counts them: all layers exist."""
        return self.adapter_class(self.fsr_view()).tapped_layers()

    def hidden_layers(self) -> frozenset[int]:
        """The last one, which the merger reads."""
        return frozenset({-1})

    def fsr_view(self) -> Any:
        """The tower as `QwenVLAdapter` looks at it."""
        return view(self.config, self.visual)

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        """Features and position channels, [K, D + 5] per picture; videos whole."""
        requests = requests_of(kwargs)
        out: tuple[Tensor, ...] = ()
        for modality, given in self._parse_and_validate_multimodal_inputs(**kwargs).items():
            if modality == "video":
                out += tuple(_with_channels(v, None) for v in self._process_video_input(given))
                continue
            grids = given["image_grid_thw"]
            widths = [int(w) // self.visual.spatial_merge_size for _, _, w in grids.tolist()]
            for (features, rows), width in zip(self._pictures(given, grids, requests), widths):
                out += (_with_channels(features, pack_places(rows // width, rows % width, features.dtype)),)
        return out

    def _pictures(self, given: Any, grids: Tensor, requests: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        if not any(r.keep for r in requests):
            whole = self._process_image_input(given)
            return [(f, torch.arange(len(f), device=f.device)) for f in whole]
        numbers = set(self._fsr_layers().values())
        # The merger and the blocks go past hooks of their own (they can be compiled); what is inside them does not.
        with watch({n: self.visual.blocks[n].attn for n in numbers}, norm=self.visual.merger.ln_q) as seen:
            features = self._process_image_input(given)
        device = features[0].device
        grids = grids.to(device)
        lengths = (grids[:, 1] * grids[:, 2]).repeat_interleave(grids[:, 0])
        segments = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        saliency, extra = self.signals_of(seen, segments)
        output = SimpleNamespace(pooler_output=list(features), last_hidden_state=seen.given["norm"].flatten(0, -2))
        chosen = self.choose(output, saliency, extra, {"image_grid_thw": grids}, requests)
        return [(c.features, c.rows) for c in chosen]

    def _media(self, mm_features: Any) -> Any:
        """(offset, t, h, w, t_factor) of each medium by the model, and how many placeholders it really has."""
        ordered = sorted(mm_features, key=lambda f: f.mm_position.offset)
        for feature, found in zip(ordered, self.iter_mm_grid_thw(mm_features)):
            yield (*found, feature.mm_position.length)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        """Positions [3, L] as if nothing were pruned; tokens of a pruned picture stand where it begins until they are
        known."""
        parts: list[Tensor] = []
        done, at = 0, 0
        for offset, t, h, w, t_factor, length in self._media(mm_features):
            parts.append((at + torch.arange(offset - done)).expand(3, -1))
            at += offset - done
            if length == t * h * w:
                axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
                grid = torch.stack([axes[0].double().mul(t_factor).long(), axes[1], axes[2]]).flatten(1)
            else:
                grid = torch.zeros(3, length, dtype=torch.long)
            parts.append(at + grid)
            at += max(int((t - 1) * t_factor), h - 1, w - 1) + 1
            done = offset + length
        parts.append((at + torch.arange(len(input_tokens) - done)).expand(3, -1))
        positions = torch.cat(parts, dim=1)
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Put the tokens that are about to be computed where they belong; see the module's docstring."""
        length = mrope_positions.shape[1]
        delta = self._delta(mrope_positions, length)
        if not multimodal_embeddings:
            return multimodal_embeddings, mrope_positions, delta
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        media = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
        media[:num_computed_tokens] = False
        channels = torch.cat([e[:, -CHANNELS:] for e in multimodal_embeddings]).to(mrope_positions.device)
        places = media.nonzero().flatten()[: len(channels)]
        y, x, moved = unpack_places(channels)
        positions = mrope_positions.clone()
        began = positions[0, places]
        positions[1, places] = torch.where(moved, began + y, positions[1, places])
        positions[2, places] = torch.where(moved, began + x, positions[2, places])
        return [e[:, :-CHANNELS] for e in multimodal_embeddings], positions, delta

    def _delta(self, positions: Tensor, length: int) -> int:
        return int(positions.max()) + 1 - length


def pack_places(y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows and columns, long [K], as channels [K, 5] that any floating dtype holds exactly (below 128 * 256)."""
    digits = [y // _BASE, y % _BASE, x // _BASE, x % _BASE, torch.ones_like(y)]
    return torch.stack(digits, dim=-1).to(dtype)


def unpack_places(channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse: rows and columns, long [K], and bool [K]: whether they mean anything (not for videos)."""
    high_y, low_y, high_x, low_x, moved = channels.long().unbind(-1)
    return high_y * _BASE + low_y, high_x * _BASE + low_x, moved > 0


def _with_channels(features: Tensor, channels: Tensor | None) -> Tensor:
    if channels is None:
        channels = features.new_zeros(len(features), CHANNELS)
    return torch.cat([features, channels.to(features)], dim=-1)
