"""LLaVA-1.5 (CLIP or SigLIP tower), pruned inside vLLM. One-dimensional RoPE: kept tokens get consecutive positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor, nn
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from fsr.adapters.base import Adapter
from fsr.adapters.llava import LlavaAdapter
from fsr.errors import UnsupportedModelError
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.taps import Watched
from fsr.serving.vllm.vision import PrunedVision, Seen, layer_numbers, requests_of, view

__all__ = ["FLAT_TOWER", "FSRLlavaForConditionalGeneration", "LlavaVision"]

# Transformers 5 saves towers without the level "vision_model"; vLLM 0.32 knows only the older layout.
FLAT_TOWER = WeightsMapper(
    orig_to_new_prefix={
        f"{lead}vision_tower.{part}": f"vision_tower.vision_model.{part}"
        for lead in ("model.", "")
        for part in ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
    }
)


class LlavaVision(PrunedVision):
    """What the LLaVA families share: one tower over tiles, built up to the layer that the language model reads."""

    adapter_class: ClassVar[type[Adapter]] = LlavaAdapter
    config: Any
    vision_tower: Any
    multi_modal_projector: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        if config.vision_config.model_type not in ("clip_vision_model", "siglip_vision_model"):
            raise UnsupportedModelError(
                f"a {config.vision_config.model_type} tower cannot be pruned inside vLLM: "
                "use a LLaVA with CLIP or SigLIP."
            )
        if not isinstance(config.vision_feature_layer, int):
            raise UnsupportedModelError("several feature layers are not supported inside vLLM: use fsr.prune().")
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    @property
    def feature_layer(self) -> int:
        """The hidden state that the language model reads, counted from the end."""
        layer, depth = self.config.vision_feature_layer, self.config.vision_config.num_hidden_layers
        return int(layer if layer < 0 else layer - depth - 1)

    def signal_layers(self) -> dict[str, int]:
        """As `LlavaAdapter` counts them, less the layers that vLLM leaves out."""
        depth = self.config.vision_config.num_hidden_layers
        numbers = layer_numbers(depth, depth + self.feature_layer)
        return {name: number for name, number in numbers.items() if number < len(self._layers)}

    def hidden_layers(self) -> frozenset[int]:
        """The last one that is built."""
        return frozenset({self.feature_layer})

    def fsr_view(self) -> Any:
        """The tower as `LlavaAdapter` looks at it."""
        return view(self.config, self.vision_tower.vision_model)

    def attention(self, number: int) -> nn.Module:
        """Layers beyond the one that is read do not exist."""
        module: nn.Module = self._layers[number].self_attn.attn
        return module

    def watched_modules(self) -> dict[str, nn.Module]:
        """The encoder, whose output the projector reads."""
        return {"encoder": self.vision_tower.vision_model.encoder}

    def tower_tokens(self, given: Mapping[str, Any]) -> list[int]:
        """Patches of all tiles of each picture."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return [side**2 * (p.shape[0] if p.dim() == 4 else 1) for p in given["pixel_values"]]

    def part(self, given: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """Everything is one entry per picture."""
        return {name: value[start:stop] for name, value in given.items()}

    def features_of(self, given: Mapping[str, Any]) -> Sequence[Tensor]:
        """[N, D] per picture."""
        made = super().embed_multimodal(**given)  # type: ignore[misc]
        return list(made)

    def seen_as(self, features: Sequence[Tensor], seen: Watched, given: Mapping[str, Any]) -> Seen:
        """Hidden states by number; adapters only ask where pixels are, and how large."""
        state: Tensor = seen.made["encoder"]
        states = {self.feature_layer: state, self.config.vision_feature_layer: state}
        output = SimpleNamespace(
            pooler_output=list(features),
            hidden_states=states,
            last_hidden_state=state if self.feature_layer == -1 else None,
        )
        # Pictures with different numbers of tiles come as a list.
        pixels = given["pixel_values"]
        return Seen(output, {**given, "pixel_values": pixels if isinstance(pixels, Tensor) else pixels[0]})

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features [K, D] per picture. Embeddings that were pruned outside pass, each with a length of its own."""
        requests = requests_of(kwargs)
        if (given := kwargs.get("image_embeds")) is not None:
            return tuple(given)
        pictures = {n: kwargs[n] for n in ("pixel_values", "image_sizes") if kwargs.get(n) is not None}
        if not pictures:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        return tuple(c.features for c in self.prune_pictures(self.unpadded(pictures), requests))

    def unpadded(self, pictures: dict[str, Any]) -> dict[str, Any]:
        """Without tiles that are there only because another picture has more."""
        return pictures

    @property
    def _layers(self) -> Any:
        return self.vision_tower.vision_model.encoder.layers


class Processor(PrunedProcessing, LlavaMultiModalProcessor):
    """The stock processor with fewer placeholders."""

    adapter_class: ClassVar[type[Adapter]] = LlavaAdapter


@MULTIMODAL_REGISTRY.register_processor(Processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class FSRLlavaForConditionalGeneration(LlavaVision, LlavaForConditionalGeneration):
    """vLLM's LLaVA-1.5 with pruned pictures."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | FLAT_TOWER
