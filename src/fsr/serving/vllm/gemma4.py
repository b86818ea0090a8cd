"""Gemma 4, pruned inside vLLM: rasters of any shape, patches averaged by their position.

vLLM runs Transformers' own tower here, so it is listened to as everywhere outside vLLM (`fsr.signals.tap`). A picture's
size in tokens is the request's `max_soft_tokens`; the budget counts from there. Clips and sounds are not pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor
from vllm.model_executor.models.gemma4_mm import (
    Gemma4DummyInputsBuilder,
    Gemma4ForConditionalGeneration,
    Gemma4MultiModalProcessor,
    Gemma4ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fsr.adapters.base import Adapter
from fsr.adapters.gemma4 import Gemma4Adapter
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.taps import Watched, watch
from fsr.serving.vllm.vision import PrunedVision, Seen, requests_of, view
from fsr.signals.attention import LayerStates
from fsr.signals.tap import record_layers

__all__ = ["FSRGemma4ForConditionalGeneration"]


class Processor(PrunedProcessing, Gemma4MultiModalProcessor):
    """The stock processor with fewer placeholders for pictures."""

    adapter_class: ClassVar[type[Adapter]] = Gemma4Adapter


class _Taped(Watched):
    """Queries and keys from Transformers' own attention."""

    def __init__(self, seen: Watched, states: Callable[[int], LayerStates]) -> None:
        super().__init__({})
        self.given, self.made, self._states = seen.given, seen.made, states

    def states(self, number: int, segments: Tensor | None = None) -> LayerStates:
        """With the mask that hides padding."""
        return self._states(number)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Gemma4ProcessingInfo, dummy_inputs=Gemma4DummyInputsBuilder)
class FSRGemma4ForConditionalGeneration(PrunedVision, Gemma4ForConditionalGeneration):
    """vLLM's Gemma 4 with pruned pictures."""

    adapter_class: ClassVar[type[Adapter]] = Gemma4Adapter
    config: Any
    vision_tower: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # One picture at a time, as the tower is stacked by size and memory: what was heard belongs to one picture.
        self._fsr_tower_budget = 0

    def signal_layers(self) -> dict[str, int]:
        """As the adapter counts them: all layers exist."""
        return self.adapter_class(self.fsr_view()).tapped_layers()

    def hidden_layers(self) -> frozenset[int]:
        """The last one, before pooling."""
        return frozenset({-1})

    @contextmanager
    def watching(self, numbers: set[int]) -> Iterator[Watched]:
        """See `PrunedVision`."""
        tower = self.vision_tower
        with record_layers(tower, sorted(numbers)) as states, watch({}, encoder=tower.encoder) as seen:
            yield _Taped(seen, states)

    def fsr_view(self) -> Any:
        """The tower as `Gemma4Adapter` looks at it, with its pooler."""
        return view(self.config, self.vision_tower)

    def tower_tokens(self, given: Mapping[str, Any]) -> list[int]:
        """Patches, padding included, after pooling."""
        area = int(self.config.vision_config.pooling_kernel_size) ** 2
        return [len(p) // area for p in given["pixel_values"]]

    def part(self, given: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """Everything is one entry per picture."""
        return {name: value[start:stop] for name, value in given.items()}

    def features_of(self, given: Mapping[str, Any]) -> Sequence[Tensor]:
        """[N, D] per picture."""
        made = super().embed_multimodal(**given)
        return list(made)

    def seen_as(self, features: Sequence[Tensor], seen: Watched, given: Mapping[str, Any]) -> Seen:
        """A picture is one raster, padded."""
        state = seen.made["encoder"]
        output = SimpleNamespace(pooler_output=list(features), hidden_states={-1: state})
        return Seen(output, {"image_position_ids": given["pixel_position_ids"][0][None]})

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features [K, D] per picture; clips and sounds whole, in the order of the engine's own function."""
        requests = requests_of(kwargs)
        pictures = {n: kwargs.pop(n) for n in ("pixel_values", "pixel_position_ids") if kwargs.get(n) is not None}
        kept = [c.features for c in self.prune_pictures(pictures, requests)] if pictures else []
        return [*kept, *super().embed_multimodal(**kwargs)]
