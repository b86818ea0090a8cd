"""The pictures of a prompt after the vision tower, kept for more than one use: another question about the same picture,
another budget, another method. The tower runs once; `prepare(..., encoded=...)` does the rest.

    seen = encode(model, inputs, FSR(keep=16))
    first = prepare(model, FSR(keep=16), inputs, "where is the dog ?", encoded=seen)
    second = prepare(model, FSR(keep=8), other_inputs, "what color is it ?", encoded=seen)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsr.adapters import find
from fsr.adapters.base import Adapter, Encoded
from fsr.adapters.containers import rebuild
from fsr.errors import UsageError
from fsr.methods.base import Method
from fsr.pipeline.scorer import resolve_scorer
from fsr.signals.relevance import RelevanceScorer

__all__ = ["EncodedPrompt", "encode", "run_tower"]


@dataclass(frozen=True)
class EncodedPrompt:
    """What `encode` found.

    parts: one `Encoded` per modality; their units stand in prompt order.
    signals: what methods may read of them.
    scorer: scores patches against questions, None where no method reads relevance.
    """

    parts: tuple[Encoded, ...]
    signals: frozenset[str]
    scorer: RelevanceScorer | None

    def take(self, pictures: Sequence[int]) -> EncodedPrompt:
        """The same pictures for another prompt: in another order, fewer, or one of them several times.

        pictures: for each picture of the new prompt, its number in this one. Nothing is copied, and what the tower
        left behind besides features and signals is let go.

        Raises:
            UsageError: a number out of range, or pictures together with clips (they are numbered apart).
        """
        if len(self.parts) != 1:
            raise UsageError(
                "take() numbers the pictures of one modality: encode pictures and clips in separate calls."
            )
        (part,) = self.parts
        if not all(0 <= i < len(part.units) for i in pictures):
            raise UsageError(f"pictures {list(pictures)}: {len(part.units)} were encoded, numbered from 0.")
        return replace(self, parts=(_take(part, pictures),))

    def check(self, signals: frozenset[str]) -> None:
        """Raise `UsageError` unless every signal that a method reads was recorded."""
        if lacking := sorted(signals - self.signals):
            raise UsageError(
                f"these pictures were encoded without {', '.join(lacking)}: give this method to encode() too."
            )


def encode(
    model: Any,
    inputs: Mapping[str, Any],
    *methods: Method,
    relevance: str | RelevanceScorer = "auto",
) -> EncodedPrompt:
    """Run the vision tower and the projector once, recording every signal that any of `methods` reads.

    Args:
        model, inputs, relevance: as for `prepare`.
        methods: all methods that will prune these pictures (budgets do not matter).

    Raises:
        UnsupportedModelError, RelevanceError, FeatureError: see `fsr.errors`. UsageError: no pictures in the inputs.
    """
    adapter = find(model)
    signals: frozenset[str] = frozenset()
    scorer: RelevanceScorer | None = None
    for method in methods:
        method, found = resolve_scorer(adapter, method, relevance)
        signals, scorer = signals | method.signals(), scorer or found
    parts = run_tower(adapter, inputs, signals, scorer)
    if not parts:
        raise UsageError("these inputs hold no pictures: pass the processor's output with its pixels.")
    return EncodedPrompt(tuple(parts), signals, scorer)


def run_tower(
    adapter: Adapter, inputs: Mapping[str, Any], signals: frozenset[str], scorer: RelevanceScorer | None
) -> list[Encoded]:
    """One pass of the vision side for one set of signals."""
    if getattr(scorer, "reads_features", False):
        signals = signals - {"relevance"}
    return adapter.encode(inputs, signals, scorer.layer if scorer else -2, getattr(scorer, "tile_head", None))


def _take(part: Encoded, pictures: Sequence[int]) -> Encoded:
    counts = [unit.count for unit in part.units]
    everything = [torch.arange(n) for n in counts]
    # Only to cut deepstack features into pictures; plain outputs have none.
    cut = getattr(
        rebuild(part.output, [u.features for u in part.units], everything, counts), "deepstack_features", None
    )
    units = [part.units[i] for i in pictures]
    # Features are handed over from the units; of the old container only the kind is asked for (see `rebuild`).
    pooled: Any = part.output.pooler_output[:0] if isinstance(part.output.pooler_output, Tensor) else []
    deep = {} if cut is None else {"deepstack_features": [[layer[i] for i in pictures] for layer in cut]}
    return replace(
        part,
        units=units,
        patches=None if part.patches is None else [part.patches[i] for i in pictures],
        output=type(part.output)(pooler_output=pooled, **deep),
        timings={},
        placeholders=None if part.placeholders is None else tuple(part.placeholders[i] for i in pictures),
    )
