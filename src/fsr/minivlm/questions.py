"""Eight kinds of questions about a scene, with their true answers and the objects they are about.

existence, color, count, neighbor, position, background (global context), comparison, reading. Every kind is drawn so
that no single answer wins: existence and comparison are balanced by construction, counts are asked by answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsr.minivlm.scenes import BACKGROUNDS, CLASSES, COLORS, LETTERS, QUADRANTS, Scene

__all__ = ["KINDS", "Question", "ask", "ask_all"]

KINDS = ["existence", "color", "count", "neighbor", "position", "background", "comparison", "reading"]
_NUMBERS = ["one", "two", "three", "four"]
_STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@dataclass(frozen=True)
class Question:
    """text ends in " ?"; answer is one word (two letters for reading). targets: indices of the objects asked about
    (-2 is the sign, empty for background and for things that are not there)."""

    kind: str
    text: str
    answer: str
    targets: tuple[int, ...]


def _off_the_middle(scene: Scene, i: int) -> bool:
    """False for an object whose centre is so near the picture's middle that its quadrant is no fair question."""
    o = scene.objects[i]
    return all(abs(at - half) > 0.2 * scene.cell for at, half in zip(o.center, o.middle))


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """One question of a kind, or None where the scene does not allow it."""
    objects = scene.objects
    times: dict[int, int] = {}
    for o in objects:
        times[o.kind] = times.get(o.kind, 0) + 1
    unique = [i for i, o in enumerate(objects) if times[o.kind] == 1 and not o.big]

    def one(values: list[int]) -> int:
        return values[int(rng.integers(len(values)))]

    if kind == "background":
        return Question(kind, "what is in the background ?", BACKGROUNDS[scene.background], ())
    if kind == "reading":
        if scene.sign is None:
            return None
        return Question(kind, "what does the sign say ?", " ".join(LETTERS[s].lower() for s in scene.sign), (-2,))
    if kind == "existence":
        if rng.random() < 0.5:
            # Small things mostly; the big distractor is too easy to be asked about often.
            small = [i for i, o in enumerate(objects) if not o.big]
            i = one(small) if small and rng.random() < 0.85 else one(list(range(len(objects))))
            name = objects[i].kind
            return Question(
                kind, f"is there a {CLASSES[name]} ?", "yes", tuple(j for j, o in enumerate(objects) if o.kind == name)
            )
        absent = [k for k in range(len(CLASSES)) if k not in times]
        return Question(kind, f"is there a {CLASSES[one(absent)]} ?", "no", ())
    if kind == "count":
        n = 1 + int(rng.choice(4, p=[0.04, 0.32, 0.32, 0.32]))  # nearly every scene has something once, few have four
        named = [k for k, v in times.items() if v == n]
        if not named:
            return None
        name = one(named)
        return Question(
            kind,
            f"how many {CLASSES[name]} are there ?",
            _NUMBERS[n - 1],
            tuple(j for j, o in enumerate(objects) if o.kind == name),
        )
    if not unique:
        return None
    if kind == "color":
        carded = [i for i in unique if objects[i].color >= 0]
        if not carded:
            return None
        i = one(carded)
        return Question(kind, f"what color is the {CLASSES[objects[i].kind]} ?", list(COLORS)[objects[i].color], (i,))
    if kind == "position":
        clear = [i for i in unique if _off_the_middle(scene, i)]
        if not clear:
            return None
        i = one(clear)
        return Question(kind, f"where is the {CLASSES[objects[i].kind]} ?", QUADRANTS[objects[i].quadrant], (i,))
    if kind == "neighbor":
        at = {cell: j for j, o in enumerate(objects) for cell in o.cells}
        found = []
        for i in unique:
            ((r, c),) = objects[i].cells
            for word, (dr, dc) in _STEPS.items():
                j = at.get((r + dr, c + dc))
                if j is not None:
                    found.append((i, word, j))
        if not found:
            return None
        i, word, j = found[int(rng.integers(len(found)))]
        return Question(kind, f"what is {word} the {CLASSES[objects[i].kind]} ?", CLASSES[objects[j].kind], (i, j))
    if kind == "comparison":
        if len(unique) < 2:
            return None
        i, j = (int(v) for v in rng.choice(unique, 2, replace=False))
        axis = int(rng.integers(2))
        gap = objects[i].center[axis] - objects[j].center[axis]
        if abs(gap) < scene.cell / 2:  # less than half a cell: not a fair question
            return None
        low, high = (("left of", "right of"), ("above", "below"))[axis]
        word = low if rng.random() < 0.5 else high
        true = (gap < 0) == (word == low)
        a, b = CLASSES[objects[i].kind], CLASSES[objects[j].kind]
        return Question(kind, f"is the {a} {word} the {b} ?", "yes" if true else "no", (i, j))
    raise ValueError(f"unknown kind of question {kind!r}: use one of {', '.join(KINDS)}")


def ask_all(scene: Scene, n: int, rng: np.random.Generator, weights: dict[str, float] | None = None) -> list[Question]:
    """n different questions about one scene, kinds drawn evenly (or by weights)."""
    p = np.array([1.0 if weights is None else weights.get(k, 1.0) for k in KINDS])
    p = p / p.sum()
    found: dict[str, Question] = {}
    for _ in range(12 * n):
        q = ask(scene, KINDS[int(rng.choice(len(KINDS), p=p))], rng)
        # One existence question of each answer at most: duplicates of "yes" would otherwise be dropped more often
        # than "no".
        if q is not None and not (
            q.kind == "existence" and any(f.kind == q.kind and f.answer == q.answer for f in found.values())
        ):
            found.setdefault(q.text, q)
        if len(found) == n:
            break
    return list(found.values())
