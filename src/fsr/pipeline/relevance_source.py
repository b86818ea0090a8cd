"""Which relevance scorer a method runs with on a model: the paired text tower, the language model's first layer or word
embeddings, what was measured for this model, one of the caller's own, or none. Nothing is guessed in silence."""

from __future__ import annotations

from dataclasses import fields, replace
from os import PathLike
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

from fsr.adapters.base import Adapter
from fsr.errors import RelevanceError, UsageError
from fsr.methods.base import Method
from fsr.signals.calibration import RelevanceCalibration, calibration_beside, load_calibration
from fsr.signals.embedding import EmbeddingRelevance
from fsr.signals.first_layer import FirstLayerRelevance
from fsr.signals.relevance import RelevanceScorer, Twin, paired_tower, verified
from fsr.signals.text_projections import text_projections

__all__ = ["SOURCES", "WITHOUT_TOWER", "find_twin", "measured", "resolve_scorer"]

# What `relevance=` takes by name. Besides these: a file of `fsr calibrate` (*.json), or a scorer.
SOURCES = ("auto", "none", "first-layer", "embedding")
# What "auto" means on families without a public text tower, where no calibration lies beside the weights: papers
# disagree about which source, and which sign, points at what is asked.
WITHOUT_TOWER = "none"

_found: WeakKeyDictionary[nn.Module, Twin] = WeakKeyDictionary()
_find_lock = Lock()


def resolve_scorer(
    adapter: Adapter, method: Method, relevance: str | PathLike[str] | RelevanceScorer
) -> tuple[Method, RelevanceScorer | None]:
    """The method as it will run, and its scorer (None where it reads no relevance).

    "auto" is what the method's paper takes (`Method.own_relevance`) or else the paired text tower; families without a
    public one take what `measured` finds, or `WITHOUT_TOWER`.

    Raises:
        RelevanceError: no paired text tower, the wrong one, no usable first layer, a calibration of another model, or a
            method that cannot do without.
        UsageError: no method that prunes before the language model.
    """
    if not isinstance(method, Method):
        raise UsageError(
            f"{getattr(method, 'name', method)} does not (only) prune before the language model: use prune(model, ...)."
        )
    if "relevance" not in method.signals():
        return method, None
    if isinstance(relevance, PathLike) or (isinstance(relevance, str) and relevance.endswith(".json")):
        relevance = load_calibration(relevance).scorer(adapter.model)
    if isinstance(relevance, RelevanceScorer):
        if isinstance(relevance, Twin):
            verified(adapter.vision_tower, relevance)
        elif isinstance(relevance, FirstLayerRelevance):
            _of_model(adapter, relevance)
        return method, relevance
    if relevance == "auto":
        if method.own_relevance is None and adapter.paired_text_tower:
            return method, find_twin(adapter)
        if method.own_relevance is None and (found := measured(adapter)) is not None:
            return method, found.scorer(adapter.model)
        relevance = method.own_relevance or WITHOUT_TOWER
    if relevance == "embedding":
        return method, EmbeddingRelevance(adapter.model.get_input_embeddings())
    if relevance == "first-layer":
        return method, _of_model(adapter, FirstLayerRelevance(adapter.model))
    if relevance == "none":
        if "relevance" not in {f.name for f in fields(method)}:
            raise RelevanceError(
                f"{method.name} cannot do without relevance: give relevance='first-layer', 'embedding' or a scorer "
                "(on the command line --relevance), or another method."
            )
        return replace(method, relevance="none"), None  # type: ignore[call-arg]
    raise RelevanceError(
        f"relevance={relevance!r}: use {', '.join(map(repr, SOURCES))}, a file of `fsr calibrate` (*.json), or a "
        "scorer such as load_twin('folder')."
    )


def measured(adapter: Adapter) -> RelevanceCalibration | None:
    """What "auto" reads on a family without a public text tower: the file of `fsr calibrate` beside the weights, None
    without one.

    Raises:
        RelevanceError: a file of that name that `fsr calibrate` did not write.
    """
    if adapter.paired_text_tower:
        return None
    return calibration_beside(str(getattr(adapter.model, "name_or_path", "") or ""))


def find_twin(adapter: Adapter) -> Twin:
    """The text tower that pairs with the model's vision tower: `text_tower/` in its own folder, else by fingerprint.
    Kept per model.

    Raises:
        RelevanceError: none known, not loadable, or its vision tower differs from the model's.
    """
    with _find_lock:
        if adapter.model not in _found:
            name = str(getattr(adapter.model, "name_or_path", "") or "")
            _found[adapter.model] = paired_tower(name, adapter.vision_tower, adapter.name)
        return _found[adapter.model]


def _of_model(adapter: Adapter, scorer: FirstLayerRelevance) -> FirstLayerRelevance:
    scorer.check()
    if text_projections(scorer.model).attention is not text_projections(adapter.model).attention:
        raise RelevanceError("this first-layer scorer was made for another model: make one for this model.")
    return scorer
