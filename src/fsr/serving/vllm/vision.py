"""The engine: encode as always, then choose tokens by the same methods and adapters as everywhere else.

A mixin in front of a vLLM model class. `prune_pictures` watches the tower, hands what it saw to the family's adapter
(which knows packing and geometry, see `fsr.adapters`), and returns K features per picture. No question, budget or
picture is judged here: that was done in the front end (`processing`), where an error costs one request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import StageMissingLayer

from fsr.adapters.base import Adapter, TowerStates
from fsr.device import synchronise
from fsr.errors import FeatureError, UnsupportedModelError, UsageError
from fsr.kernels import backend_name
from fsr.pipeline.select import without_relevance
from fsr.serving.vllm.checkpoints import check_model_type
from fsr.serving.vllm.failures import FailedPictures, picked
from fsr.serving.vllm.first_layer import EngineFirstLayer
from fsr.serving.vllm.memory import ChoiceMemory, Chosen
from fsr.serving.vllm.metrics import Tally
from fsr.serving.vllm.processing import REQUEST
from fsr.serving.vllm.settings import EngineSettings, Request
from fsr.serving.vllm.taps import Watched, mean_over_ranks, refuse_what_skips_hooks, watch
from fsr.signals.embedding import EmbeddingRelevance
from fsr.signals.relevance import RelevanceScorer, paired_tower
from fsr.tokens import VisualTokens

__all__ = ["PrunedVision", "Seen", "layer_numbers", "passes", "requests_of", "view"]


@dataclass(frozen=True)
class Seen:
    """What one pass of the tower gave, as an adapter expects it.

    output: `pooler_output` (features as the language model would see them) and the tower's states. inputs: the names
    that a processor gives pixels and sizes. segments: cumulative lengths, where the tower packs pictures.
    """

    output: Any
    inputs: Mapping[str, Any]
    segments: Tensor | None = None


class PrunedVision:
    """Mixin: `class X(PrunedVision, LlavaForConditionalGeneration)`.

    adapter_class: what knows this family's packing. tower_name: the attribute that holds the vision tower.
    """

    adapter_class: ClassVar[type[Adapter]]
    tower_name: ClassVar[str] = "vision_tower"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_model_type(vllm_config.model_config.hf_config, self.adapter_class)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        refuse_what_skips_hooks(vllm_config)
        self._fsr_config = model = vllm_config.model_config
        self.fsr_settings = EngineSettings.of(model.hf_config, self.adapter_class.paired_text_tower, str(model.model))
        self._fsr_scorer: RelevanceScorer | None = None
        self._fsr_tensor_parallel = vllm_config.parallel_config.tensor_parallel_size
        self._fsr_tower_budget = int(vllm_config.scheduler_config.max_num_encoder_input_tokens)
        self.fsr_memory = ChoiceMemory()
        self.fsr_failed = FailedPictures(vllm_config.instance_id)
        self.fsr_tally = Tally(speaks=get_tensor_model_parallel_rank() == 0)
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

    def attention(self, number: int) -> nn.Module:
        """The attention module of one layer of the tower."""
        raise NotImplementedError

    def watched_modules(self) -> dict[str, nn.Module]:
        """Other modules of the tower whose inputs and outputs `seen_as` reads, by name."""
        raise NotImplementedError

    def fsr_view(self) -> Any:
        """What the adapter knows of this model: `config`, and `model` with the tower and what packs."""
        raise NotImplementedError

    def tower_tokens(self, given: Mapping[str, Any]) -> list[int]:
        """N of each picture: what the tower works on, however few tokens are announced."""
        raise NotImplementedError

    def part(self, given: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """The arguments of pictures start to stop."""
        raise NotImplementedError

    def features_of(self, given: Mapping[str, Any]) -> Sequence[Tensor]:
        """The model's own features of each picture, [N, D]; channels beyond `feature_width` travel with their rows."""
        raise NotImplementedError

    def seen_as(self, features: Sequence[Tensor], seen: Watched, given: Mapping[str, Any]) -> Seen:
        """One pass of the tower as the adapter expects it."""
        raise NotImplementedError

    def watching(self, numbers: set[int]) -> AbstractContextManager[Watched]:
        """Watch these layers, and the other modules, while the body encodes."""
        return watch({n: self.attention(n) for n in numbers}, **self.watched_modules())

    @property
    def feature_width(self) -> int | None:
        """D, where channels of another kind stand behind a token's own features."""
        return None

    # ---------------------------------------------------------------------------------------------------- same for all

    def load_weights(self, weights: Any) -> set[str]:
        """As the model does; then find the text tower, and see that it belongs to these weights."""
        loaded = super().load_weights(weights)  # type: ignore[misc]
        self._fsr_scorer = self._scorer()
        return loaded

    def prune_pictures(self, given: Mapping[str, Any], requests: Sequence[Request]) -> list[Chosen]:
        """Encode and prune, in as many passes of the tower as its budget asks for.

        The scheduler charges the K tokens that are announced, and the tower works on all N: pictures that it puts
        into one step are encoded one after another as soon as together they exceed what it would have allowed.
        """
        sizes, out = self.tower_tokens(given), []
        for start, stop in passes(sizes, self._fsr_tower_budget):
            out += self._pass(self.part(given, start, stop), requests[start:stop])
        return out

    def _pass(self, given: Mapping[str, Any], requests: Sequence[Request]) -> list[Chosen]:
        known = [self.fsr_memory.get(r) if r.keep else None for r in requests]
        if all(k is not None or not r.keep for k, r in zip(known, requests)):
            features = self.features_of(given)
            chosen: list[Chosen | None] = [None] * len(requests)
            spent = 0.0
        else:
            with self.watching(set(self._fsr_layers().values())) as seen:
                features = self.features_of(given)
            main = [f[:, : self.feature_width] for f in features]
            device = features[0].device
            synchronise(device)
            began = time.perf_counter()
            chosen = self._choose(self.seen_as(main, seen, given), seen, requests, known)
            synchronise(device)
            spent = 1e3 * (time.perf_counter() - began)
        out = []
        for whole, request, remembered, new in zip(features, requests, known, chosen):
            kept = new if remembered is None else remembered.again(whole[:, : self.feature_width])
            if kept is None:
                out.append(Chosen(whole, torch.arange(len(whole), device=whole.device)))
                continue
            if remembered is None:
                self.fsr_memory.put(request, kept, whole[:, : self.feature_width])
            if request.picture:
                self.fsr_tally.encoded(len(kept.rows), len(whole), remembered is not None)
            rest = whole[kept.rows, self.feature_width or whole.shape[1] :]
            rest = rest.nan_to_num(0.0, 0.0, 0.0) if kept.failed else rest
            out.append(Chosen(torch.cat([kept.features, rest], dim=-1), kept.rows))
        if spent and any(r.picture for r in requests):
            self.fsr_tally.selected(spent, backend_name(features[0].device))
        return out

    def _choose(
        self, pictures: Seen, seen: Watched, requests: Sequence[Request], known: Sequence[Any]
    ) -> list[Chosen | None]:
        """Rows and features of each picture that is to be pruned and is not known yet."""
        method, scorer = self.fsr_settings.method, self._fsr_scorer
        saliency, extra = self._signals_of(seen, pictures.segments)
        signals = method.signals()
        of_features = getattr(scorer, "reads_features", False)
        wanted = signals - {"relevance"} if of_features else signals
        states = TowerStates(
            saliency, extra, wanted, scorer.layer if scorer else -2, getattr(scorer, "tile_head", None)
        )
        adapter = self.adapter_class(self.fsr_view())
        units = adapter.units("image", pictures.output, states, pictures.inputs)
        tokens = units.tokens
        out: list[Chosen | None] = [None] * len(tokens)
        groups: dict[bool, list[int]] = {}
        counts = []
        for i, (unit, request) in enumerate(zip(tokens, requests)):
            structural = 0 if unit.structural is None else int(unit.structural.sum())
            counts.append(self.fsr_settings.count(request.keep, unit.count, structural))
            if known[i] is not None or counts[i] == unit.count:
                continue
            question = request.question if "relevance" in signals else None
            if scorer is not None and question is not None:
                read = unit.features if units.patches is None else units.patches[i]
                tokens[i] = _scored(unit, read, scorer, question)
            groups.setdefault(question is not None, []).append(i)
        for asked, members in groups.items():
            one = method if asked else without_relevance(method)
            asking = [(tokens[i], requests[i].keep, counts[i]) for i in members]
            failed = partial(self._failed, [requests[i] for i in members])
            for i, chosen in zip(members, picked(one, asking, failed)):
                out[i] = chosen
        return out

    def _failed(self, requests: Sequence[Request], number: int, error: FeatureError) -> None:
        request = requests[number]
        logging.getLogger("vllm.fsr").error("picture %s could not be pruned: %s", request.identity, error)
        self.fsr_tally.failed()
        if self.fsr_tally.speaks and request.picture:
            self.fsr_failed.add(request.identity)

    def _signals_of(self, seen: Watched, segments: Tensor | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
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
        if settings.relevance in ("embedding", "first-layer"):
            if self._fsr_tensor_parallel > 1:
                raise UsageError(f"relevance={settings.relevance!r} reads whole weights: not with tensor parallelism.")
            from vllm.tokenizers import cached_tokenizer_from_config

            language: Any = self.language_model  # type: ignore[attr-defined]
            tokenizer, found = cached_tokenizer_from_config(self._fsr_config), settings.calibration
            if settings.relevance == "first-layer":
                return EngineFirstLayer(language, tokenizer, None if found is None else found.weights)
            words = EmbeddingRelevance(language.model.embed_tokens, tokenizer)
            return words if found is None else replace(words, sign=found.embedding_sign, words=found.embedding_words)
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


def layer_numbers(depth: int, middle: int) -> dict[str, int]:
    """As `Adapter.tapped_layers` counts them, for towers whose fused projections it does not find."""
    numbers = {"saliency": middle, "keys": middle, "shallow_saliency": max(0, depth // 4 - 1), "first_saliency": 0}
    return numbers | {"last_saliency": depth - 1, "last_keys": depth - 1}


def passes(sizes: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Runs (start, stop) of pictures whose sizes together stay within the budget; one that is larger goes alone."""
    runs: list[tuple[int, int]] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > budget:
            runs.append((start, i))
            start, total = i, 0
        total += size
    return [*runs, (start, len(sizes))] if sizes else runs


def view(config: Any, tower: nn.Module, **base: Any) -> Any:
    """An object with the few attributes of a Transformers model that adapters ask for."""
    return SimpleNamespace(config=config, model=SimpleNamespace(vision_tower=tower, config=config, **base))


def _scored(unit: VisualTokens, states: Tensor, scorer: RelevanceScorer, question: str) -> VisualTokens:
    score = scorer(states, question)
    return replace(unit, relevance=score.mean(-1) if score.dim() == 2 else score)
