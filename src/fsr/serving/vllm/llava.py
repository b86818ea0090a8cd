"""LLaVA-1.5 (CLIP or SigLIP tower), pruned inside vLLM. One-dimensional RoPE: kept tokens get consecutive positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor
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
from fsr.serving.vllm.taps import Watched, watch
from fsr.serving.vllm.vision import PrunedVision, requests_of, view

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
        middle = depth + self.feature_layer
        numbers = {"saliency": middle, "keys": middle, "shallow_saliency": max(0, depth // 4 - 1), "first_saliency": 0}
        numbers |= {"last_saliency": depth - 1, "last_keys": depth - 1}
        return {name: number for name, number in numbers.items() if number < len(self._layers)}

    def hidden_layers(self) -> frozenset[int]:
        """The last one that is built."""
        return frozenset({self.feature_layer})

    def fsr_view(self) -> Any:
        """The tower as `LlavaAdapter` looks at it."""
        return view(self.config, self.vision_tower.vision_model)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features [K, D] per picture. Embeddings that were pruned outside pass, each with a length of its own."""
        requests = requests_of(kwargs)
        if (given := kwargs.get("image_embeds")) is not None:
            return tuple(given)
        if not any(r.keep for r in requests):
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        numbers = set(self._fsr_layers().values())
        modules = {"encoder": self.vision_tower.vision_model.encoder}
        with watch({n: self._layers[n].self_attn for n in numbers}, **modules) as seen:
            features = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        output = SimpleNamespace(pooler_output=features, **self._tower_states(seen))
        saliency, extra = self.signals_of(seen)
        # Pictures with different numbers of tiles come as a list; adapters only ask where pixels are, and how large.
        pixels = kwargs["pixel_values"]
        inputs = {**kwargs, "pixel_values": pixels if isinstance(pixels, Tensor) else pixels[0]}
        return tuple(c.features for c in self.choose(output, saliency, extra, inputs, requests))

    @property
    def _layers(self) -> Any:
        return self.vision_tower.vision_model.encoder.layers

    def _tower_states(self, seen: Watched) -> dict[str, Any]:
        state: Tensor = seen.made["encoder"]
        states = {self.feature_layer: state, self.config.vision_feature_layer: state}
        return {"hidden_states": states, "last_hidden_state": state if self.feature_layer == -1 else None}


class Processor(PrunedProcessing, LlavaMultiModalProcessor):
    """The stock processor with fewer placeholders."""

    adapter_class: ClassVar[type[Adapter]] = LlavaAdapter


@MULTIMODAL_REGISTRY.register_processor(Processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class FSRLlavaForConditionalGeneration(LlavaVision, LlavaForConditionalGeneration):
    """vLLM's LLaVA-1.5 with pruned pictures."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | FLAT_TOWER
