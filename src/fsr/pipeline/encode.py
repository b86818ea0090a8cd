"""The pictures of a prompt after the vision tower, kept for more than one use: another question about the same picture,
another budget, another method. The tower runs once; `prepare(..., encoded=...)` does the rest.

    seen = encode(model, inputs, FSR(keep=16))
    first = prepare(model, FSR(keep=16), inputs, "where is the dog ?", encoded=seen)
    second = prepare(model, FSR(keep=8), other_inputs, "what color is it ?", encoded=seen)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from fsr.adapters import find
from fsr.adapters.base import Adapter, Encoded
from fsr.adapters.containers import alike, rebuild
from fsr.errors import UsageError
from fsr.methods.base import Method
from fsr.pipeline.fingerprint import Fingerprints
from fsr.pipeline.inputs import check_inputs
from fsr.pipeline.relevance_source import resolve_scorer
from fsr.signals.relevance import RelevanceScorer, reads_features

__all__ = ["EncodedPrompt", "encode", "encode_unnamed", "joined", "run_tower", "source_for"]

UNNAMED = Fingerprints()


@dataclass(frozen=True)
class EncodedPrompt:
    """What `encode` found.

    parts: one `Encoded` per modality; their units stand in prompt order.
    signals: what methods may read of them.
    scorer: scores patches (or features) against questions, None where no method reads relevance.
    pictures: which ones these are, where that was asked for.
    """

    parts: tuple[Encoded, ...]
    signals: frozenset[str]
    scorer: RelevanceScorer | None
    pictures: Fingerprints = UNNAMED

    def take(self, pictures: Sequence[int]) -> EncodedPrompt:
        """The same pictures for another prompt: in another order, fewer, or one of them several times.

        pictures: for each picture of the new prompt, its number in this one. Nothing is copied, and what the tower
        returned besides features and signals is dropped.

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
        return replace(self, parts=(_take(part, pictures),), pictures=self.pictures.take(pictures))

    def resolve(
        self, adapter: Adapter, method: Method, relevance: str | PathLike[str] | RelevanceScorer
    ) -> tuple[Method, RelevanceScorer | None]:
        """`resolve_scorer` for these pictures: "auto" is the scorer that they were encoded for, unless the method has
        one of its own.

        Raises:
            UsageError: a signal that the method reads was not recorded, or other states of the tower were.
        """
        if (
            isinstance(relevance, str)
            and relevance == "auto"
            and self.scorer
            and getattr(method, "own_relevance", None) is None
        ):
            relevance = self.scorer
        method, scorer = resolve_scorer(adapter, method, relevance)
        wanted: set[str] = set(method.signals())
        if reads_features(scorer):
            wanted.discard("relevance")
        if lacking := sorted(wanted - self.signals):
            raise UsageError(
                f"these pictures were encoded without {', '.join(lacking)}: give this method to encode() too."
            )
        if "relevance" in wanted and scorer is not None and scorer is not self.scorer:
            raise UsageError("these pictures were encoded for another relevance scorer: give that one to encode().")
        return method, scorer


def encode(
    model: Any,
    inputs: Mapping[str, Any],
    *methods: Method,
    relevance: str | PathLike[str] | RelevanceScorer = "auto",
) -> EncodedPrompt:
    """Run the vision tower and the projector once, recording every signal that any of `methods` reads.

    Args:
        model, inputs, relevance: as for `prepare`.
        methods: all methods that will prune these pictures (budgets do not matter).

    Raises:
        UnsupportedModelError, RelevanceError, FeatureError: see `fsr.errors`. UsageError: no pictures in the inputs.
    """
    check_inputs(inputs)
    seen = encode_unnamed(model, inputs, *methods, relevance=relevance)
    return replace(seen, pictures=Fingerprints.of(find(model), inputs))


def encode_unnamed(
    model: Any,
    inputs: Mapping[str, Any],
    *methods: Method,
    relevance: str | PathLike[str] | RelevanceScorer = "auto",
) -> EncodedPrompt:
    """`encode` for callers that know their pictures apart: no pixel is read to tell them from others."""
    adapter = find(model)
    signals: frozenset[str] = frozenset()
    of_tower: RelevanceScorer | None = None
    of_features: RelevanceScorer | None = None
    for method in methods:
        method, found = resolve_scorer(adapter, method, relevance)
        signals = signals | method.signals()
        if reads_features(found):
            # A method's own source is its own; the others share the one that was asked for.
            of_features = of_features or (found if method.own_relevance is None or relevance != "auto" else None)
        else:
            of_tower = of_tower or found
    if of_tower is None:
        signals = signals - {"relevance"}
    parts = run_tower(adapter, inputs, signals, of_tower)
    if not parts:
        raise UsageError("these inputs hold no pictures: pass the processor's output with its pixels.")
    return EncodedPrompt(tuple(parts), signals, of_tower or of_features)


def source_for(
    adapter: Adapter, method: Method, relevance: str | PathLike[str] | RelevanceScorer, seen: EncodedPrompt | None
) -> tuple[Method, RelevanceScorer | None]:
    """`resolve_scorer` for pictures that the tower has seen, or (None) has yet to see.

    Raises:
        UsageError, RelevanceError: see there; or what was seen comes from elsewhere than `encode`.
    """
    if seen is None:
        return resolve_scorer(adapter, method, relevance)
    if not isinstance(seen, EncodedPrompt):
        raise UsageError(f"encoded={type(seen).__name__} is none: give what encode(model, inputs, method) returned.")
    return seen.resolve(adapter, method, relevance)


def joined(prompts: Sequence[EncodedPrompt]) -> EncodedPrompt:
    """Pictures that were encoded apart (each as `take` returns them) as those of one prompt, in this order."""
    first = prompts[0]
    parts = [p for prompt in prompts for p in prompt.parts]
    deep: list[Any] = [getattr(p.output, "deepstack_features", None) for p in parts]
    # Per layer one entry per picture, as `take` leaves them.
    layers = None if deep[0] is None else [[x for own in deep for x in own[i]] for i in range(len(deep[0]))]
    output = alike(
        parts[0].output,
        pooler_output=parts[0].output.pooler_output,
        **({} if layers is None else {"deepstack_features": layers}),
    )
    patches = [p.patches for p in parts]
    runs = [p.placeholders for p in parts]
    part = replace(
        parts[0],
        units=[u for p in parts for u in p.units],
        patches=None if any(p is None for p in patches) else [x for p in patches for x in p or ()],
        placeholders=None if any(r is None for r in runs) else tuple(n for r in runs for n in r or ()),
        output=output,
    )
    each = [p.pictures.each for p in prompts]
    found = None if any(e is None for e in each) else tuple(d for e in each for d in e or ())
    return replace(first, parts=(part,), pictures=Fingerprints(found))


def run_tower(
    adapter: Adapter, inputs: Mapping[str, Any], signals: frozenset[str], scorer: RelevanceScorer | None
) -> list[Encoded]:
    """One pass of the vision side for one set of signals."""
    if reads_features(scorer):
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
        output=alike(part.output, pooler_output=pooled, **deep),
        timings={},
        placeholders=None if part.placeholders is None else tuple(part.placeholders[i] for i in pictures),
    )
