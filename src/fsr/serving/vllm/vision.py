"""The engine: encode as always, then choose tokens by the same methods and adapters as everywhere else.

A mixin in front of a vLLM model class. Its `embed_multimodal` watches the tower, hands what it saw to the family's
adapter (which knows packing and geometry, see `fsr.adapters`), and returns K features per picture. No question, budget
or picture is judged here: that was done in the front end (`processing`), where an error costs one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.model_executor.models.utils import StageMissingLayer

from fsr.adapters.base import Adapter, TowerStates
from fsr.errors import UnsupportedModelError, UsageError
from fsr.serving.vllm.processing import REQUEST
from fsr.serving.vllm.settings import EngineSettings, Request
from fsr.serving.vllm.taps import Watched, mean_over_ranks
from fsr.signals.embedding import EmbeddingRelevance
from fsr.signals.relevance import RelevanceScorer, paired_tower
from fsr.tokens import Selection, VisualTokens

__all__ = ["Chosen", "PrunedVision", "requests_of"]


@dataclass(frozen=True)
class Chosen:
    """One picture: features [K, D] and the rows long [K] (of N) that they stand for."""

    features: Tensor
    rows: Tensor
    selection: Selection | None


class PrunedVision:
    """Mixin: `class X(PrunedVision, LlavaForConditionalGeneration)`.

    adapter_class: what knows this family's packing. tower_name: the attribute that holds the vision tower.
    """

    adapter_class: ClassVar[type[Adapter]]
    tower_name: ClassVar[str] = "vision_tower"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        _refuse_what_skips_hooks(vllm_config)
        self.fsr_settings = EngineSettings.of(vllm_config.model_config.hf_config, self.adapter_class.paired_text_tower)
        self._fsr_config = vllm_config.model_config
        self._fsr_scorer: RelevanceScorer | None = None
        self._fsr_tensor_parallel = vllm_config.parallel_config.tensor_parallel_size
        layers = self.signal_layers()
        have = {"saliency", "relevance", "encoder", *layers}
        if lacking := sorted(s for s in self.fsr_settings.method.signals() if s not in have):
            raise UnsupportedModelError(
                f"{self.fsr_settings.method.name} reads {', '.join(lacking)}, which vLLM's tower of this model does "
                "not give (layers beyond the one that the language model reads are not built): choose another method."
            )

    # ------------------------------------------------------------------------------------------ what families differ in

    def signal_layers(self) -> dict[str, int]:
        """Which layer each signal of attention is read from, for the layers that exist."""
        raise NotImplementedError

    def hidden_layers(self) -> frozenset[int]:
        """Hidden states of the tower that a relevance scorer may read, counted from the end."""
        raise NotImplementedError

    def fsr_view(self) -> Any:
        """What the adapter knows of this model: `config`, and `model` with the tower and what packs."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------------- same for all

    def load_weights(self, weights: Any) -> set[str]:
        """As the model does; then find the text tower, and see that it belongs to these weights."""
        loaded = super().load_weights(weights)  # type: ignore[misc]
        self._fsr_scorer = self._scorer()
        return loaded

    def choose(
        self,
        output: Any,
        saliency: Tensor | None,
        extra: Mapping[str, Tensor],
        inputs: Mapping[str, Any],
        requests: Sequence[Request],
    ) -> list[Chosen]:
        """Prune each picture of one pass of the tower.

        output: `pooler_output` (features as the language model would see them) and the tower's states, as an adapter
        expects them. saliency, extra: signals in the tower's own order, see `TowerStates`.
        """
        method, scorer = self.fsr_settings.method, self._fsr_scorer
        signals = method.signals()
        of_features = getattr(scorer, "reads_features", False)
        wanted = signals - {"relevance"} if of_features else signals
        seen = TowerStates(saliency, extra, wanted, scorer.layer if scorer else -2, getattr(scorer, "tile_head", None))
        adapter = self.adapter_class(self.fsr_view())
        units = adapter.units("image", output, seen, inputs)
        tokens = units.tokens
        if scorer is not None and "relevance" in signals:
            read = [t.features for t in tokens] if units.patches is None else units.patches
            tokens = [_scored(t, p, scorer, r) for t, p, r in zip(tokens, read, requests)]
        out: list[Chosen | None] = [None] * len(tokens)
        groups: dict[int | float, list[int]] = {}
        for i, (unit, request) in enumerate(zip(tokens, requests)):
            structural = 0 if unit.structural is None else int(unit.structural.sum())
            if self.fsr_settings.count(request.keep, unit.count, structural) == unit.count:
                out[i] = Chosen(unit.features, torch.arange(unit.count, device=unit.features.device), None)
            else:
                groups.setdefault(request.keep, []).append(i)
        for keep, members in groups.items():  # pictures of one budget are chosen from together
            for i, s in zip(members, replace(method, keep=keep)([tokens[i] for i in members])):
                out[i] = Chosen(s.features, s.rows, s)
        return [c for c in out if c is not None]

    def signals_of(self, seen: Watched, segments: Tensor | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Saliency and the other signals of attention that the method reads, in the tower's own order."""
        adapter = self.adapter_class(self.fsr_view())
        layers = self._fsr_layers()
        read = {name: adapter.signal_of(name, seen.states(layer, segments)) for name, layer in layers.items()}
        read = {name: mean_over_ranks(value) for name, value in read.items()}
        return read.pop("saliency", None), read

    def _fsr_layers(self) -> dict[str, int]:
        """The layers to watch for this method."""
        signals = self.fsr_settings.method.signals()
        return {name: layer for name, layer in self.signal_layers().items() if name in signals}

    def _scorer(self) -> RelevanceScorer | None:
        settings = self.fsr_settings
        # An engine that only takes embeddings (`--limit-mm-per-prompt '{"image": 0}'`) loads no tower.
        absent = isinstance(getattr(self, self.tower_name), StageMissingLayer)
        if absent or "relevance" not in settings.method.signals():
            return None
        if settings.relevance == "embedding":
            if self._fsr_tensor_parallel > 1:
                raise UsageError("relevance='embedding' reads the whole embedding: not with tensor parallelism.")
            from vllm.tokenizers import cached_tokenizer_from_config

            language: Any = self.language_model  # type: ignore[attr-defined]
            return EmbeddingRelevance(language.model.embed_tokens, cached_tokenizer_from_config(self._fsr_config))
        folder = self._fsr_config.model if settings.relevance == "auto" else settings.relevance
        scorer = paired_tower(str(folder), self.fsr_view().model.vision_tower, self.adapter_class.name)
        if scorer.layer not in self.hidden_layers():
            raise UnsupportedModelError(
                f"{scorer.source} reads hidden state {scorer.layer} of the vision tower, which vLLM does not build for "
                "this model: give relevance='none' or 'embedding'."
            )
        return scorer


def requests_of(arguments: dict[str, Any]) -> list[Request]:
    """Take what the front end attached off the arguments of `embed_multimodal`, one `Request` per picture."""
    return [Request.from_tensor(data) for data in arguments.pop(REQUEST, [])]


def view(config: Any, tower: nn.Module, **base: Any) -> Any:
    """An object with the few attributes of a Transformers model that adapters ask for."""
    return SimpleNamespace(config=config, model=SimpleNamespace(vision_tower=tower, config=config, **base))


def _scored(unit: VisualTokens, states: Tensor, scorer: RelevanceScorer, request: Request) -> VisualTokens:
    # Unpruned pictures come without a question.
    if request.keep == 0 or request.question is None:
        return unit
    score = scorer(states, request.question)
    return replace(unit, relevance=score.mean(-1) if score.dim() == 2 else score)


def _refuse_what_skips_hooks(vllm_config: Any) -> None:
    compilation, multimodal = vllm_config.compilation_config, vllm_config.model_config.multimodal_config
    for name in ("compile_mm_encoder", "cudagraph_mm_encoder"):
        if getattr(compilation, name, False):
            raise UsageError(f"{name} runs the vision tower past the hooks that pruning needs: switch it off.")
    if multimodal.mm_encoder_tp_mode == "data":
        raise UsageError(
            "mm_encoder_tp_mode='data' spreads pictures over ranks, which pruning cannot follow: use 'weights'."
        )
