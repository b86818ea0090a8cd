"""Models with three-dimensional positions (Qwen): kept tokens keep their row and column.

Placeholders are numbered before any picture is encoded. So the K placeholders of a picture all stand at its first
position, and text goes on after the whole grid, as if nothing were pruned; where each kept token lies is only known
once it was chosen. It travels beside the features, in channels of its own: `embed_input_ids`, which gets just the
features that the next pass computes, takes the channels off and lays rows and columns down in a buffer; `forward`
adds them to the positions. No step depends on where a chunk of the prompt begins or ends, or on what a cache held.

(vLLM has another seam, made for its video pruning: `recompute_mrope_positions`. Its CPU runner never calls it, it lumps
the frames of Qwen3-VL's whole videos together, and text after a portrait picture would move.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsr.adapters.base import Adapter
from fsr.errors import UsageError
from fsr.serving.vllm.settings import Request
from fsr.serving.vllm.taps import Watched
from fsr.serving.vllm.vision import PrunedVision, Seen, requests_of, view

__all__ = ["MRopeVision", "pack_places", "unpack_places"]

# Channels travel in the model's dtype, and bfloat16 knows whole numbers only up to 256: two digits per coordinate.
_BASE = 128
CHANNELS = 4
_ARGUMENTS = ("type", "pixel_values", "image_embeds", "image_grid_thw")
# Speculation that reads token numbers only.
_DRAFTS_OF_TOKENS = ("ngram", "ngram_gpu", "suffix")


class MRopeVision(PrunedVision):
    """Mixin in front of a Qwen model of vLLM. norm_name: the norm of the merger, which reads the tower's last state."""

    adapter_class: ClassVar[type[Adapter]]
    tower_name: ClassVar[str] = "visual"
    norm_name: ClassVar[str]
    config: Any
    visual: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        _refuse_what_shares_positions(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        longest = vllm_config.scheduler_config.max_num_batched_tokens
        # Lives as long as the model, at one address: CUDA graphs replay reads and writes of it.
        self._fsr_places = torch.zeros(2, longest, dtype=torch.long)

    def signal_layers(self) -> dict[str, int]:
        """As the adapter counts them: all layers exist."""
        return self.adapter_class(self.fsr_view()).tapped_layers()

    def hidden_layers(self) -> frozenset[int]:
        """The last one, which the merger reads."""
        return frozenset({-1})

    def attention(self, number: int) -> nn.Module:
        """The blocks go past hooks of their own (they can be compiled); what is inside them does not."""
        module: nn.Module = self.visual.blocks[number].attn.attn
        return module

    def watched_modules(self) -> dict[str, nn.Module]:
        """The merger can be compiled too; its norm is reached in any case."""
        return {"norm": getattr(self.visual.merger, self.norm_name)}

    def fsr_view(self) -> Any:
        """The tower as `QwenVLAdapter` looks at it."""
        return view(self.config, self.visual)

    def tower_tokens(self, given: Mapping[str, Any]) -> list[int]:
        """Merge units of each grid."""
        return [int(n) // self._area for n in given["image_grid_thw"].prod(-1).tolist()]

    def part(self, given: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """Pictures follow one another in one sequence of patches (of merge units, where they come as embeddings)."""
        sizes = self.tower_tokens(given)
        begin, end = sum(sizes[:start]), sum(sizes[:stop])
        cut: dict[str, Any] = {"image_grid_thw": given["image_grid_thw"][start:stop]}
        for name, each in (("pixel_values", self._area), ("image_embeds", 1)):
            if given.get(name) is not None:
                cut[name] = given[name][begin * each : end * each]
        return {**given, **cut}

    def features_of(self, given: Mapping[str, Any]) -> Sequence[Tensor]:
        """[N, D] per picture, with deepstack channels behind where the model has them."""
        made: Sequence[Tensor] = self._process_image_input(given)  # type: ignore[attr-defined]
        return made

    def seen_as(self, features: Sequence[Tensor], seen: Watched, given: Mapping[str, Any]) -> Seen:
        """One sequence of patches, cut into pictures (and frames) where attention was."""
        grids = given["image_grid_thw"].to(features[0].device)
        lengths = (grids[:, 1] * grids[:, 2]).repeat_interleave(grids[:, 0])
        state = seen.given["norm"]
        output = SimpleNamespace(pooler_output=list(features), last_hidden_state=state.reshape(int(lengths.sum()), -1))
        segments = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        return Seen(output, {"image_grid_thw": grids}, segments)

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        """Features and places, [K, D + 4] per picture; videos whole."""
        requests = requests_of(kwargs)
        out: tuple[Tensor, ...] = ()
        parsed = self._parse_and_validate_multimodal_inputs(**kwargs)  # type: ignore[attr-defined]
        for modality, given in parsed.items():
            if modality.startswith("video"):
                for clip in self._process_video_input(given):  # type: ignore[attr-defined]
                    out += (torch.cat([clip, clip.new_zeros(len(clip), CHANNELS)], dim=-1),)
                continue
            given = {name: given[name] for name in _ARGUMENTS if given.get(name) is not None}
            widths = [int(w) // self.visual.spatial_merge_size for _, _, w in given["image_grid_thw"].tolist()]
            if given["type"] == "image_embeds":
                requests = []  # made outside: whole
            for chosen, width in zip(self.prune_pictures(given, requests or [Request(0)] * len(widths)), widths):
                places = pack_places(chosen.rows // width, chosen.rows % width, chosen.features.dtype)
                out += (torch.cat([chosen.features, places.to(chosen.features.device)], dim=-1),)
        return out

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions [3, L] by the model's own function for the unpruned prompt, with each picture drawn together to
        its first position."""
        tokens, features, kept = self._unpruned(input_tokens, mm_features)
        positions, delta = super().get_mrope_input_positions(tokens, features)  # type: ignore[misc]
        for feature in features:
            if feature.modality == "image":
                start = feature.mm_position.offset
                stop = start + feature.mm_position.length
                positions[:, start:stop] = positions[:, start : start + 1].clone()
        return positions[:, kept], delta + len(tokens) - len(input_tokens)

    def _unpruned(self, tokens: list[int], mm_features: list[Any]) -> tuple[list[int], list[Any], Tensor]:
        """The prompt with all N placeholders per picture, its features moved along, and which columns are ours."""
        out: list[int] = []
        kept: list[int] = []
        features, done = [], 0
        for feature in sorted(mm_features, key=lambda f: f.mm_position.offset):
            at, length = feature.mm_position.offset, feature.mm_position.length
            kept += range(len(out), len(out) + at - done)
            out += tokens[done:at]
            size = length
            if feature.modality == "image":
                size = int(feature.data["image_grid_thw"].data.prod()) // self._area
            place = replace(feature.mm_position, offset=len(out), length=size)
            if size != length:  # what is announced are the first K of them
                place = replace(place, is_embed=None)
            features.append(replace(feature, mm_position=place))
            kept += range(len(out), len(out) + length)
            out += tokens[at : at + length] + [tokens[at]] * (size - length)
            done = at + length
        kept += range(len(out), len(out) + len(tokens) - done)
        return out + tokens[done:], features, torch.tensor(kept, dtype=torch.long)

    def embed_input_ids(self, input_ids: Tensor, multimodal_embeddings: Any = None, **kwargs: Any) -> Tensor:
        """As the model does; the places of the tokens go into the buffer that `forward` adds to their positions."""
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
            return super().embed_input_ids(input_ids, multimodal_embeddings, **kwargs)  # type: ignore[misc]
        where: Tensor = kwargs["is_multimodal"]
        y, x = unpack_places(torch.cat([e[:, -CHANNELS:] for e in multimodal_embeddings]))
        at = where.to(y.device).nonzero().flatten()
        self._fsr_places[0, at] = y.to(self._fsr_places.device)
        self._fsr_places[1, at] = x.to(self._fsr_places.device)
        bare = [e[:, :-CHANNELS] for e in multimodal_embeddings]
        return super().embed_input_ids(input_ids, bare, **kwargs)  # type: ignore[misc]

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The engine writes `positions` [3, L] anew before each pass; what was added is forgotten after it."""
        places = self._fsr_places[:, : positions.shape[-1]]
        # In place: a captured graph reads the engine's own buffer.
        positions[1:, : places.shape[1]].add_(places)
        places.zero_()
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]

    @property
    def _area(self) -> int:
        return int(self.visual.spatial_merge_size) ** 2


def pack_places(y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows and columns, long [K], as channels [K, 4] that any floating dtype holds exactly (below 128 * 256)."""
    return torch.stack([y // _BASE, y % _BASE, x // _BASE, x % _BASE], dim=-1).to(dtype)


def unpack_places(channels: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: rows and columns, long [K]; zeros move nothing (videos)."""
    high_y, low_y, high_x, low_x = channels.long().unbind(-1)
    return high_y * _BASE + low_y, high_x * _BASE + low_x


def _refuse_what_shares_positions(vllm_config: Any) -> None:
    multimodal, parallel = vllm_config.model_config.multimodal_config, vllm_config.parallel_config
    if getattr(multimodal, "video_pruning_rate", None):
        raise UsageError("video_pruning_rate numbers tokens in a way of its own: leave it out beside pruned pictures.")
    if parallel.pipeline_parallel_size > 1:
        raise UsageError("later pipeline stages are not told where kept tokens lie: use tensor parallelism.")
    if parallel.use_ubatching:
        raise UsageError("micro-batches (enable_dbo, ubatch_size) share one buffer of positions: leave them out.")
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method not in _DRAFTS_OF_TOKENS:
        raise UsageError(
            f"{speculative.method} drafts are not told where kept tokens lie: use {' or '.join(_DRAFTS_OF_TOKENS)}."
        )
