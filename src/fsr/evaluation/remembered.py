"""What the runner keeps of a picture's signals: relevance scored once per question, and both signals at any quality."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from torch import Tensor

from fsr.adapters.base import Encoded
from fsr.evaluation.qualities import CLEAN, SALIENCY_SIGNALS, poorer_relevance, poorer_saliency
from fsr.pipeline.encode import EncodedPrompt
from fsr.signals.relevance import RelevanceScorer, reads_features
from fsr.tokens import Geometry, VisualTokens

__all__ = ["Remembered", "with_saliency"]

Name = tuple[Hashable, ...]


class Memory:
    """What all qualities of one scorer share.

    scores: by picture and question. places: of each picture, its name for the noise and where its tokens lie. poorer:
    scores at a lower level, by picture, question and level. Pictures are told apart by identity: the runner holds them
    all the time.
    """

    def __init__(self) -> None:
        self.scores: dict[tuple[int, str], Tensor] = {}
        self.places: dict[int, tuple[Name, Geometry]] = {}
        self.poorer: dict[tuple[int, str, str], Tensor] = {}


class Remembered:
    """A scorer that scores each picture against each question once, at a level of quality; `sign` -1 turns the scores
    around."""

    def __init__(
        self, inner: RelevanceScorer, level: str = CLEAN.relevance, sign: int = 1, memory: Memory | None = None
    ) -> None:
        self.inner, self.level, self.sign, self.layer = inner, level, sign, inner.layer
        self.reads_features = reads_features(inner)
        self.memory = Memory() if memory is None else memory

    def place(self, part: Encoded, names: Sequence[Name]) -> None:
        """Tell where the tokens of these pictures lie, and what each picture is called."""
        read = [u.features for u in part.units] if self.reads_features else part.patches or []
        for states, unit, name in zip(read, part.units, names):
            if unit.geometry is not None:
                self.memory.places[id(states)] = (name, unit.geometry)

    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """See `RelevanceScorer`."""
        memory, key = self.memory, (id(patches), question)
        if key not in memory.scores:
            score = self.inner(patches, question)
            memory.scores[key] = score.mean(-1) if score.dim() == 2 else score  # patches that the model merges
        if self.level == CLEAN.relevance:
            return self.sign * memory.scores[key]
        lower = (*key, self.level)
        if lower not in memory.poorer:
            name, geometry = memory.places[id(patches)]
            memory.poorer[lower] = poorer_relevance(memory.scores[key], geometry, self.level, *name, question)
        return self.sign * memory.poorer[lower]

    def at(self, level: str, sign: int = 1) -> Remembered:
        """The same memory at another level, or with another sign."""
        return Remembered(self.inner, level, sign, self.memory)


def with_saliency(seen: EncodedPrompt, owner: Sequence[Tensor], kind: str, names: Sequence[Name]) -> EncodedPrompt:
    """The same pictures with saliency of another kind, in every form that methods read.

    owner: per picture long [N], the object on each token, -1 for the ground; names: per picture, for the noise.
    """
    (part,) = seen.parts
    made: dict[Name, VisualTokens] = {}
    for unit, here, name in zip(part.units, owner, names):
        if name not in made:
            made[name] = _poorer(unit, here, kind, name)
    return replace(seen, parts=(replace(part, units=[made[name] for name in names]),))


def _poorer(unit: VisualTokens, owner: Tensor, kind: str, name: Name) -> VisualTokens:
    def worse(value: Tensor) -> Tensor:
        return poorer_saliency(value, owner, kind, *name)

    extra = {n: worse(v) if n in SALIENCY_SIGNALS else v for n, v in unit.extra.items()}
    return replace(unit, saliency=None if unit.saliency is None else worse(unit.saliency), extra=extra)
