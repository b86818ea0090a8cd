"""Where each source of relevance points on pictures with known places, and the calibration that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsr.adapters import find
from fsr.asking.chat import chat_inputs
from fsr.errors import RelevanceError, UsageError
from fsr.evaluation.known_places import KnownPlace
from fsr.methods import Relevance
from fsr.pipeline.encode import encode
from fsr.pipeline.relevance_source import find_twin
from fsr.signals.calibration import FEWEST, HeadFit, RelevanceCalibration, fit_heads, pointing
from fsr.signals.embedding import EmbeddingRelevance, Words, over_words, word_cosines
from fsr.signals.first_layer import FirstLayerRelevance
from fsr.signals.question_tokens import question_ids
from fsr.signals.relevance import reads_features

__all__ = ["Pointing", "calibrate", "look"]


@dataclass(frozen=True)
class Pointing:
    """One text about one picture of N tokens: what each source says, and where the answer lies.

    heads: float32 [H, N], rows of the first layer's heads. words: float32 [T, N], cosines with the word embeddings.
    tower: float32 [N] from the paired text tower, its sign applied, or None. inside: bool [N].
    """

    heads: Tensor
    words: Tensor
    tower: Tensor | None
    inside: Tensor


@torch.no_grad()
def look(model: Any, processor: Any, places: Iterable[KnownPlace]) -> list[Pointing]:
    """Run the vision tower once per text and score its tokens with every source that the model has.

    Raises:
        RelevanceError: the language model's first layer cannot be read.
    """
    adapter = find(model)
    first = FirstLayerRelevance(adapter.model).bound(processor)
    embedding = adapter.model.get_input_embeddings()
    asks: Any = "first-layer"
    if adapter.paired_text_tower:
        try:
            asks = find_twin(adapter)
        except RelevanceError:
            pass  # this model's text tower is not at hand: the other sources need none
    found = []
    for place in places:
        inputs = chat_inputs(processor, place.image, place.text)
        inputs = {k: v.to(adapter.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        seen = encode(model, inputs, Relevance(keep=1), relevance=asks)
        (part,) = seen.parts
        (unit,) = part.units
        if unit.geometry is None:
            raise UsageError(f"the {adapter.name} adapter does not say where its tokens lie: choose another model.")
        rows = unit.geometry.tile >= 0
        tower = None
        if not reads_features(seen.scorer) and seen.scorer is not None and part.patches is not None:
            score = seen.scorer(part.patches[0], place.text)
            tower = (score.mean(-1) if score.dim() == 2 else score)[rows].cpu()
        features = unit.features[rows.to(unit.features.device)]
        found.append(
            Pointing(
                first.heads(features, place.text).cpu(),
                word_cosines(embedding, question_ids(first.tokenizer, place.text), features).cpu(),
                tower,
                place.inside(unit.geometry.boxes[rows]).cpu(),
            )
        )
    return found


def calibrate(seen: list[Pointing], name: str = "") -> RelevanceCalibration:
    """What to use for a model, from what its sources say.

    The calibration names the source that points best without a text tower. Its `pointing` has all of them; fitted head
    weights are scored on pictures that they were not fitted on.

    Raises:
        RelevanceError: fewer than 20 texts with a place, or no source that points better than chance.
    """
    seen = [p for p in seen if bool(p.inside.any())]
    if len(seen) < FEWEST:
        raise RelevanceError(f"{len(seen)} texts name a place that some token covers: give at least {FEWEST}.")
    inside = [p.inside for p in seen]
    heads: HeadFit = fit_heads([p.heads for p in seen], inside)
    ways: list[tuple[int, Words]] = [(1, "mean"), (-1, "mean"), (1, "strongest"), (-1, "strongest")]
    cosine = {way: pointing([over_words(p.words, *way) for p in seen], inside) for way in ways}
    sign, words = max(ways, key=lambda way: cosine[way])  # the first of equals: as papers do it
    rates: dict[str, float] = {}
    if all(p.tower is not None for p in seen):
        rates["text tower"] = pointing([p.tower for p in seen if p.tower is not None], inside)
    rates |= {"first-layer, equal heads": heads.equal, "first-layer, weighted heads": heads.fitted}
    rates |= {EmbeddingRelevance(None, sign=way[0], words=way[1]).source: cosine[way] for way in ways}
    rates["chance"] = sum(float(i.float().mean()) for i in inside) / len(inside)
    best = max(heads.equal, heads.fitted)
    if max(best, cosine[sign, words]) <= rates["chance"]:
        raise RelevanceError(f"no source points better than chance ({_table(rates)}): use relevance='none'.")
    source = "first-layer" if best >= cosine[sign, words] else "embedding"
    rounded = {k: round(v, 4) for k, v in rates.items()}
    return RelevanceCalibration(source, heads.weights, sign, rounded, name, len(seen), words)


def _table(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * rate:.0f} %" for name, rate in rates.items())
