"""The fixed questions of `fsr compare`: scenes of the embedded model's world that no training run has drawn.

The generator is seeded with words that training never uses, and the split's number is one of them, so test and
validation share no draw. Scenes come from `scenes.draw(rng, "test")`: the pairs that training never showed (pictogram
with card colour, pictogram with quadrant) appear at their natural rate. Each kind of question gets the same number,
one per scene and kind at most, and no answer of a closed list (yes, four, top-left, ...) is right more often than its
share. Default choices of the library are made on "validation"; "test" is only for reporting.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from fsr.errors import UsageError, counted
from fsr.minivlm.native.scenes import draw_native, pick_size
from fsr.minivlm.questions import KINDS, Question, ask
from fsr.minivlm.scenes import BACKGROUNDS, COLORS, QUADRANTS, Scene, World, draw, held_out_color, held_out_quadrant

__all__ = ["KINDS", "REFERENCE", "VERSION", "Item", "QuestionSet", "Split", "World", "build"]

Split = Literal["test", "validation"]
VERSION = 1
# Training seeds are [seed, rank, step] with seed < 100; NumPy pads shorter seeds with zeros, hence a large first word.
_NAMESPACE = 0x4653522D
_SPLITS = {"test": 1, "validation": 2}
# Kinds whose answers form a short list, and its length: each answer gets at most its share of the questions.
_CLOSED = {
    "existence": 2,
    "comparison": 2,
    "count": 4,
    "position": len(QUADRANTS),
    "color": len(COLORS),
    "background": len(BACKGROUNDS),
}
_TRIES = 6  # per scene and kind, to find an answer whose share is not used up
_MOST_SCENES = 40  # per question of one kind; far above what is ever needed

# (world, split, seed, number of questions) -> sha256 of the set as drawn by NumPy 2.4 on x86-64.
REFERENCE: dict[tuple[str, str, int, int], str] = {
    ("mini", "test", 0, 2000): "a6b76f59e0f3fab4a6eb7c43a97c25fc70aafc616aa8b80977138fad9952aa64",
    ("mini", "validation", 0, 2000): "27b0f5f35502d1c04cd03a940dd7c99c34459493255966db6dc5020a18d1b774",
    ("native", "test", 0, 2000): "3ca3a039ed9d85f6589f07fcd70b5d303e4405cb9d6bd9c161fab60602ee8f80",
    ("native", "validation", 0, 2000): "0c3f85b547e73ab694f8895ca7e30da4912bcb4768a24831cd975fbef7af3e12",
}


@dataclass(frozen=True)
class Item:
    """One question of the set.

    scene: index into `QuestionSet.scenes`.
    question: kind, text, answer, and the objects it is about.
    held_out_color, held_out_quadrant: an asked object shows a pair that training never showed.
    patches: visual tokens that the asked objects (or the sign) own; 0 for the ground and absent things.
    things: different things in the scene: kinds of pictograms, the sign, the ground.
    """

    scene: int
    question: Question
    held_out_color: bool
    held_out_quadrant: bool
    patches: int
    things: int


@dataclass(frozen=True)
class QuestionSet:
    """Scenes and questions, in order of drawing: questions of one scene stand together."""

    split: Split
    seed: int
    scenes: tuple[Scene, ...]
    items: tuple[Item, ...]
    world: World = "mini"
    crowded: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def sha256(self) -> str:
        """Of version, pictures, questions and answers."""
        world = ("" if self.world == "mini" else f" {self.world}") + " crowded" * self.crowded
        digest = hashlib.sha256(f"fsr questions {VERSION} {self.split} {self.seed}{world}\n".encode())
        for scene in self.scenes:
            digest.update(np.ascontiguousarray(scene.image).tobytes())
        for item in self.items:
            digest.update(f"{item.scene}|{item.question.kind}|{item.question.text}|{item.question.answer}\n".encode())
        return digest.hexdigest()

    @property
    def note(self) -> str | None:
        """A warning if this set is not the published one bit for bit; None if it is, or if none is published."""
        known = None if self.crowded else REFERENCE.get((self.world, self.split, self.seed, len(self)))
        if known is None or known == self.sha256:
            return None
        return (
            f"the pictures drawn here (NumPy {np.__version__}) differ from the published {self.split} set: another "
            "NumPy or processor rounds differently. Compare methods within this run, but do not pair its answers with "
            "published ones."
        )

    def picture(self, scene: int) -> Image.Image:
        """A scene as an RGB picture."""
        return Image.fromarray(self.scenes[scene].image)

    def majority(self) -> dict[str, float]:
        """Per kind: the share of its most frequent answer, what a blind guess gets."""
        out = {}
        for kind in KINDS:
            answers = Counter(i.question.answer for i in self.items if i.question.kind == kind)
            if answers:
                out[kind] = max(answers.values()) / sum(answers.values())
        return out


def build(
    split: Split = "test", seed: int = 0, questions: int = 2000, world: World = "mini", crowded: bool = False
) -> QuestionSet:
    """Draw the set. The same arguments give the same bytes (see `QuestionSet.note` for the limits of that).

    Args:
        split: "test" or "validation".
        seed: another seed, another set; 0 is the published one.
        questions: how many, a multiple of the number of kinds (8).
        crowded: up to 14 things in a scene ("mini" only: "native" scenes have as many anyway).
        world: "mini", or "native" for scenes of many sizes and shapes, each size as often (`fsr.minivlm.native`).

    Raises:
        UsageError: an unknown split, a negative seed, or a number of questions that cannot be shared evenly.
    """
    if split not in get_args(Split):
        raise UsageError(f"unknown split {split!r}: use {' or '.join(get_args(Split))}.")
    if questions < len(KINDS) or questions % len(KINDS):
        raise UsageError(f"{counted(questions, 'question')}: give a multiple of {len(KINDS)}, the number of kinds.")
    if seed < 0:
        raise UsageError(f"seed {seed}: give 0 or more.")
    if crowded and world != "mini":
        raise UsageError("native scenes have up to 14 things anyway: leave crowded out.")
    # NumPy pads seeds with zeros: one more word is another set.
    rng = np.random.default_rng([_NAMESPACE, VERSION, _SPLITS[split], seed] + [1] * (world == "native") + [2] * crowded)
    quota = questions // len(KINDS)
    left = {kind: quota for kind in KINDS}
    given: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    scenes: list[Scene] = []
    items: list[Item] = []
    for _ in range(_MOST_SCENES * quota):
        if not any(left.values()):
            return QuestionSet(split, seed, tuple(scenes), tuple(items), world, crowded)
        scene = draw(rng, "test", crowded) if world == "mini" else draw_native(rng, pick_size(rng), "test")
        found = [q for k in KINDS if left[k] and (q := _question(scene, k, rng, given[k], quota)) is not None]
        if not found:
            continue
        for q in found:
            left[q.kind] -= 1
            given[q.kind][q.answer] += 1
            items.append(_item(len(scenes), scene, q))
        scenes.append(scene)
    raise UsageError("the scenes ran out before every kind had its questions: the generator of scenes has changed.")


def _question(scene: Scene, kind: str, rng: np.random.Generator, given: Counter[str], quota: int) -> Question | None:
    most = math.ceil(quota / _CLOSED[kind]) if kind in _CLOSED else quota
    for _ in range(_TRIES):
        q = ask(scene, kind, rng)
        if q is not None and given[q.answer] < most:
            return q
    return None


def _item(index: int, scene: Scene, q: Question) -> Item:
    asked: Sequence[int] = [t for t in q.targets if t >= 0]
    return Item(
        scene=index,
        question=q,
        held_out_color=any(
            scene.objects[t].color >= 0 and held_out_color(scene.objects[t].kind, scene.objects[t].color) for t in asked
        ),
        held_out_quadrant=any(held_out_quadrant(scene.objects[t].kind, scene.objects[t].quadrant) for t in asked),
        patches=int(np.isin(scene.owner, q.targets).sum()) if q.targets else 0,
        things=len({o.kind for o in scene.objects}) + (scene.sign is not None) + 1,
    )
