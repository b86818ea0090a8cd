"""Where relevance to the question (FSR Eq. 2) comes from: the text tower that was trained together with the vision
tower, the language model's first layer, its word embeddings, or a scorer of the caller's own.

`resolve_scorer` finds the one that was asked for or says that there is none; nothing is guessed in silence.
"""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from fsr.adapters.base import Adapter
from fsr.errors import RelevanceError, UsageError
from fsr.methods.base import Method
from fsr.signals.calibration import load_calibration
from fsr.signals.clip_twin import ClipTwin, Resemblance, load_twin
from fsr.signals.embedding import EmbeddingRelevance
from fsr.signals.first_layer import FirstLayerRelevance
from fsr.signals.siglip_twin import SiglipTwin
from fsr.signals.text_projections import text_projections

__all__ = [
    "SOURCES",
    "WITHOUT_TOWER",
    "RelevanceScorer",
    "find_twin",
    "paired_tower",
    "reads_features",
    "resolve_scorer",
    "source_of",
]

# What `relevance=` takes by name. Besides these: a file of `fsr calibrate` (*.json), or a scorer.
SOURCES = ("auto", "none", "first-layer", "embedding")
# What "auto" means on families without a public text tower.
WITHOUT_TOWER = "none"


@runtime_checkable
class RelevanceScorer(Protocol):
    """Anything that scores patches against a question.

    layer: the hidden state of the vision tower it reads, -1 or -2. More attributes are optional: `source`, its name for
    the report; `tile_head`, a function of the states of whole tiles [T, P, C] that runs before they are packed;
    `reads_features = True` for scorers of projected features instead of tower states, which may then have
    `bound(processor)`, the same scorer with the model's tokenizer (see `FirstLayerRelevance`).
    """

    layer: int

    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """patches [..., C] of one picture -> float32 [...], higher is more relevant (the sign is applied already)."""
        ...


# Fingerprint of a vision tower (model type, width, layers, patch, image side) -> the CLIP checkpoint it came from, and
# the sign. Real CLIP: patch-text similarity is inverted, background scores higher than the object (CLIP Surgery, arXiv
# 2304.05653).
TWINS: dict[tuple[str, int, int, int, int], tuple[str, int]] = {
    ("clip_vision_model", 1024, 24, 14, 336): ("openai/clip-vit-large-patch14-336", -1),
    ("clip_vision_model", 1024, 24, 14, 224): ("openai/clip-vit-large-patch14", -1),
    ("clip_vision_model", 768, 12, 16, 224): ("openai/clip-vit-base-patch16", -1),
    ("clip_vision_model", 768, 12, 32, 224): ("openai/clip-vit-base-patch32", -1),
    ("siglip_vision_model", 1152, 26, 14, 384): ("google/siglip-so400m-patch14-384", 1),
    ("siglip_vision_model", 1152, 27, 14, 384): ("google/siglip-so400m-patch14-384", 1),
}
Twin = ClipTwin | SiglipTwin

_found: WeakKeyDictionary[nn.Module, Twin] = WeakKeyDictionary()
_find_lock = Lock()


def reads_features(scorer: object) -> bool:
    """True for scorers of projected features, which need nothing recorded in the vision tower."""
    return bool(getattr(scorer, "reads_features", False))


def source_of(scorer: object) -> str:
    """A scorer's name for reports, "none" without one."""
    return "none" if scorer is None else str(getattr(scorer, "source", type(scorer).__name__))


def resolve_scorer(
    adapter: Adapter, method: Method, relevance: str | PathLike[str] | RelevanceScorer
) -> tuple[Method, RelevanceScorer | None]:
    """The method as it will run, and its scorer (None where it reads no relevance).

    "auto" is what the method's paper takes (`Method.own_relevance`) or else the paired text tower; families without a
    public one take `WITHOUT_TOWER`.

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
            _verified(adapter.vision_tower, relevance)
        elif isinstance(relevance, FirstLayerRelevance):
            _of_model(adapter, relevance)
        return method, relevance
    if relevance == "auto":
        if method.own_relevance is None and adapter.paired_text_tower:
            return method, find_twin(adapter)
        relevance = method.own_relevance or WITHOUT_TOWER
    if relevance == "embedding":
        return method, EmbeddingRelevance(adapter.model.get_input_embeddings())
    if relevance == "first-layer":
        return method, _of_model(adapter, FirstLayerRelevance(adapter.model))
    if relevance == "none":
        if "relevance" not in {f.name for f in fields(method)}:
            raise RelevanceError(
                f"{method.name} cannot do without relevance: give relevance='first-layer', 'embedding', a scorer, or "
                "another method."
            )
        return replace(method, relevance="none"), None  # type: ignore[call-arg]
    raise RelevanceError(
        f"relevance={relevance!r}: use {', '.join(map(repr, SOURCES))}, a file of `fsr calibrate` (*.json), or a "
        "scorer such as load_twin('folder')."
    )


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


def paired_tower(name: str, tower: nn.Module, family: str) -> Twin:
    """The text tower that pairs with `tower`, the vision tower of the model in folder (or of hub id) `name`.

    Raises:
        RelevanceError: see `find_twin`.
    """
    return _verified(tower, _load(name, tower, family))


def fingerprint(tower: nn.Module) -> tuple[str, int, int, int, int] | None:
    """What tells vision towers apart, or None for towers without these settings."""
    config = getattr(tower, "config", None)
    names = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
    values = [getattr(config, n, None) for n in names]
    if not all(isinstance(v, int) for v in values):
        return None
    return (str(getattr(config, "model_type", "")), *[int(v) for v in values])  # type: ignore[return-value, arg-type]


def _load(name: str, tower: nn.Module, family: str) -> Twin:
    hint = "pass relevance=<a scorer> (for example load_twin(folder)) or relevance='none'"
    if name and (Path(name) / "text_tower" / "relevance.json").is_file():
        return load_twin(name)
    kind = fingerprint(tower) or ("", 0, 0, 0, 0)
    known = TWINS.get(kind)
    if known is None:
        raise RelevanceError(f"no text tower is known to pair with the vision tower of this {family} model: {hint}.")
    repository, sign = known
    try:
        if kind[0] == "siglip_vision_model":
            return SiglipTwin.from_checkpoint(repository, sign=sign, tower_layers=kind[2])
        return ClipTwin.from_checkpoint(repository, sign=sign)
    except OSError as error:
        raise RelevanceError(f"the text tower {repository} could not be loaded ({error}): {hint}.") from error


def _verified(tower: nn.Module, twin: Twin) -> Twin:
    result = twin.compare(tower)
    if result is Resemblance.FAR:
        raise RelevanceError(
            f"{twin.source} is not where this model's vision tower comes from (its embeddings differ): "
            "pass the right scorer, or relevance='none'."
        )
    if result is Resemblance.CLOSE:
        warnings.warn(
            f"the vision tower was fine-tuned after {twin.source}: relevance is approximate.", UserWarning, stacklevel=2
        )
    return twin


def _of_model(adapter: Adapter, scorer: FirstLayerRelevance) -> FirstLayerRelevance:
    scorer.check()
    if text_projections(scorer.model).attention is not text_projections(adapter.model).attention:
        raise RelevanceError("this first-layer scorer was made for another model: make one for this model.")
    return scorer
