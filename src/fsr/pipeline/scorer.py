"""Which relevance scorer a method runs with on a model: the paired text tower, another one, or none."""

from __future__ import annotations

from dataclasses import fields, replace
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

from fsr.adapters.base import Adapter
from fsr.errors import RelevanceError, UsageError
from fsr.methods.base import Method
from fsr.signals.embedding import EmbeddingRelevance
from fsr.signals.relevance import RelevanceScorer, Twin, paired_tower, verified

__all__ = ["find_twin", "resolve_scorer"]

_found: WeakKeyDictionary[nn.Module, Twin] = WeakKeyDictionary()
_embedded: WeakKeyDictionary[nn.Module, EmbeddingRelevance] = WeakKeyDictionary()
_find_lock = Lock()


def resolve_scorer(
    adapter: Adapter, method: Method, relevance: str | RelevanceScorer
) -> tuple[Method, RelevanceScorer | None]:
    """The method as it will run, and its scorer (None where it reads no relevance).

    "auto" is the paired text tower; families without a public one run without relevance, as in the paper.

    Raises:
        RelevanceError: no paired text tower, the wrong one, or a method that cannot do without.
        UsageError: no method that prunes before the language model.
    """
    if not isinstance(method, Method):
        raise UsageError(
            f"{getattr(method, 'name', method)} does not (only) prune before the language model: use prune(model, ...)."
        )
    if "relevance" not in method.signals():
        return method, None
    if isinstance(relevance, RelevanceScorer):
        if isinstance(relevance, Twin):
            verified(adapter.vision_tower, relevance)
        return method, relevance
    if relevance == "embedding":
        with _find_lock:
            return method, _embedded.setdefault(adapter.model, EmbeddingRelevance(adapter.model.get_input_embeddings()))
    if relevance == "none" or (relevance == "auto" and not adapter.paired_text_tower):
        if "relevance" not in {f.name for f in fields(method)}:
            raise RelevanceError(
                f"{method.name} cannot do without relevance: give relevance='embedding', a scorer, or another method."
            )
        return replace(method, relevance="none"), None  # type: ignore[call-arg]
    if relevance != "auto":
        raise RelevanceError(
            f"relevance={relevance!r}: use 'auto', 'none', 'embedding', or a scorer such as load_twin('folder')."
        )
    return method, find_twin(adapter)


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
