"""Gemma 4: rasters of any shape padded to one length, patches averaged k x k by their position, clips frame by frame.

Pictures are bidirectional blocks of the prompt (through `mm_token_type_ids`) and layers look up embeddings of their own
by token id; both follow the shortened `input_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Modality
from fsr.adapters.packing import Channels, Layout, PackedAdapter
from fsr.adapters.registry import register
from fsr.errors import UsageError

__all__ = ["Gemma4Adapter"]


@register
class Gemma4Adapter(PackedAdapter):
    """Where a patch lies is given as (x, y); -1 is padding. A clip is one unit with a frame for every picture of it."""

    name = "gemma4"
    model_types = frozenset({"gemma4"})
    paired_text_tower = False
    chunked_prefill = False  # pictures are bidirectional blocks

    def check_settings(self, setting: Callable[[str], Any]) -> None:
        """Before 5.23 a static cache gives wrong answers to short prompts, pruned or not, and says nothing."""
        import transformers.generation.utils as utils

        cache = setting("cache_implementation") or type(setting("past_key_values")).__name__
        if "static" in str(cache).lower() and not hasattr(utils, "_slice_mm_encoder_output"):
            raise UsageError(
                "Gemma 4 in a static cache needs transformers>=5.23 (answers to short prompts are wrong before): leave "
                "cache_implementation out, or take a newer release."
            )

    def places(self, modality: Modality, inputs: Mapping[str, Any]) -> Tensor:
        """(x, y) of every patch, long [T, P, 2], -1 for padding."""
        name = f"{modality}_position_ids"
        if inputs.get(name) is None:
            raise UsageError(f"pictures of any shape need {name}: pass all that the processor returned.")
        return inputs[name].flatten(0, -3)  # older releases give clips a dimension of their own

    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """A picture or frame is one tile."""
        at = self.places(modality, inputs)
        sizes = at.amax(1, keepdim=True).clamp_min(0) + 1
        x, y = ((at + 0.5) / sizes).unbind(-1)
        frame = torch.zeros(len(at), dtype=torch.long, device=at.device)
        if modality == "video":
            frame = torch.cat([torch.arange(n) for n in self._frames(inputs)]).to(at.device)
        return Layout(y, x, torch.zeros_like(frame), frame)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The tower's own pooler, which also scales."""
        tower: Any = self.vision_tower
        at = self.places(modality, inputs)
        length = at.shape[1] // tower.config.pooling_kernel_size**2
        pooled, real = tower.pooler(
            hidden_states=channels.value,
            pixel_position_ids=at,
            padding_positions=(at == -1).all(dim=-1),
            output_length=length,
        )
        counts = real.sum(-1)
        if modality == "video":
            counts = torch.stack([part.sum() for part in counts.split(self._frames(inputs))])
        return list((pooled[real] / tower.pooler.root_hidden_size).split(counts.tolist()))

    def hidden(self, output: Any, layer: int) -> Tensor:
        """Of the states before pooling, [T, P, C]; the last hidden state is pooled already."""
        return output.hidden_states[layer].detach()

    def wants_hidden_states(self, signals: frozenset[str], patch_layer: int) -> bool:
        """None comes by itself."""
        return bool(signals & {"relevance", "encoder"})

    def _frames(self, inputs: Mapping[str, Any]) -> list[int]:
        at = inputs["video_position_ids"]
        return [at.shape[1]] * len(at) if at.dim() == 4 else [int(n) for n in inputs["num_frames_per_video"]]
