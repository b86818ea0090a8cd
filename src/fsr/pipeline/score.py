"""Score every picture of a prompt against the question of its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fsr.adapters.base import Adapter, Encoded
from fsr.errors import RelevanceError
from fsr.pipeline.shorten import Run
from fsr.signals.relevance import RelevanceScorer, reads_features
from fsr.tokens import VisualTokens

__all__ = ["bound", "with_relevance"]


def bound(scorer: RelevanceScorer, processor: Any) -> RelevanceScorer:
    """The scorer with the model's tokenizer, where it wants one.

    Raises:
        RelevanceError: it wants one and there is no processor.
    """
    bind = getattr(scorer, "bound", None)
    return scorer if bind is None else bind(processor)


def with_relevance(
    adapter: Adapter, scorer: RelevanceScorer, encoded: Encoded, runs: Sequence[Run], questions: Sequence[str | None]
) -> Encoded:
    """The same pictures with relevance: from projected features or from the tower's patch states, as the scorer reads.

    runs: per picture, where it stands; questions: one per row of the prompt.

    Raises:
        RelevanceError: the scorer reads states that this family's adapter does not give.
    """
    texts = [questions[run.row] or "" for run in runs]
    if reads_features(scorer):
        scores = [_of_features(scorer, unit, text) for unit, text in zip(encoded.units, texts)]
    elif encoded.patches is None:
        raise RelevanceError(
            f"the {adapter.name} adapter gives no patch states for {encoded.modality}s: use relevance='first-layer' or "
            "'none'."
        )
    else:
        scores = [scorer(states, text) for states, text in zip(encoded.patches, texts)]
        scores = [score.mean(-1) if score.dim() == 2 else score for score in scores]
    return replace(encoded, units=[replace(u, relevance=score) for u, score in zip(encoded.units, scores)])


def _of_features(scorer: RelevanceScorer, unit: VisualTokens, question: str) -> Tensor:
    """Scores of the features of one picture, float32 [N]; rows that are no patch neither take part nor get one."""
    if unit.structural is None:
        return scorer(unit.features, question)
    patches = (~unit.structural).nonzero()[:, 0]
    scores = scorer(unit.features[patches.to(unit.features.device)], question)
    return scores.new_zeros(unit.count).index_copy(0, patches.to(scores.device), scores)
