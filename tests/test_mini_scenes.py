"""Scenes and questions of the embedded model: reproducible, true, balanced, with held-out pairs kept out of
training."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from fsr.minivlm.questions import KINDS, ask, ask_all
from fsr.minivlm.scenes import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    LETTERS,
    QUADRANTS,
    SIDE,
    draw,
    held_out_color,
    held_out_quadrant,
)
from fsr.minivlm.vocabulary import MAX_QUESTION, WORDS, encode_words, tokenizer


@pytest.fixture(scope="module")
def scenes():
    return [draw(np.random.default_rng([11, i]), "train" if i % 2 else "test") for i in range(300)]


def test_same_seed_same_bytes():
    a, b = (draw(np.random.default_rng(5), "test") for _ in range(2))
    assert np.array_equal(a.image, b.image) and a.objects == b.objects and np.array_equal(a.owner, b.owner)
    assert not np.array_equal(a.image, draw(np.random.default_rng(6), "test").image)


def test_shapes_and_counts(scenes):
    for s in scenes:
        assert s.image.shape == (SIDE, SIDE, 3) and s.image.dtype == np.uint8
        assert 3 <= len(s.objects) <= 8
        cells = [c for o in s.objects for c in o.cells]
        assert len(cells) == len(set(cells)), "two objects share a cell"
        assert set(np.unique(s.owner)) <= {-2, -1, *range(len(s.objects))}
    assert 0.65 < np.mean([any(o.big for o in s.objects) for s in scenes]) < 0.95
    assert 0.4 < np.mean([s.sign is not None for s in scenes]) < 0.7


def test_training_never_shows_the_held_out_pairs(scenes):
    test_pairs = 0
    for i, s in enumerate(scenes):
        for o in s.objects:
            if o.big:
                continue
            out = held_out_quadrant(o.kind, o.quadrant) or (o.color >= 0 and held_out_color(o.kind, o.color))
            test_pairs += out and i % 2 == 0
            assert not (out and i % 2 == 1)
    assert test_pairs > 20, "the test split must show them"


def _truth(scene, q):
    """The answer, derived anew from the words of the question and the object list."""
    words = q.text.rstrip(" ?").split()
    named = [CLASSES.index(w) for w in words if w in CLASSES]
    those = [o for o in scene.objects if named and o.kind == named[0]]
    if q.kind == "existence":
        return "yes" if those else "no"
    if q.kind == "count":
        return ["one", "two", "three", "four"][min(len(those), 4) - 1]
    if q.kind == "background":
        return BACKGROUNDS[scene.background]
    if q.kind == "reading":
        return " ".join(LETTERS[i].lower() for i in scene.sign)
    (o,) = those
    if q.kind == "color":
        return list(COLORS)[o.color]
    x, y = (o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2
    if q.kind == "position":
        return QUADRANTS[2 * (y > SIDE / 2) + (x > SIDE / 2)]
    if q.kind == "neighbor":
        ((r, c),) = o.cells
        step = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
        dr, dc = next(v for k, v in step.items() if k in words)
        (other,) = [p for p in scene.objects if (r + dr, c + dc) in p.cells]
        return CLASSES[other.kind]
    (other,) = [p for p in scene.objects if p.kind == named[1]]
    dx = x - (other.box[0] + other.box[2]) / 2
    dy = y - (other.box[1] + other.box[3]) / 2
    says = {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}
    return "yes" if next(v for k, v in says.items() if k in words) else "no"


def test_answers_are_true_and_balanced(scenes):
    rng = np.random.default_rng(0)
    answers = defaultdict(Counter)
    for s in scenes:
        for q in ask_all(s, 8, rng):
            assert q.answer == _truth(s, q), (q, s.objects)
            assert len(encode_words(q.text)) + len(encode_words(q.answer)) + 1 <= MAX_QUESTION
            answers[q.kind][q.answer] += 1
    assert set(answers) == set(KINDS)
    majority = {k: max(c.values()) / c.total() for k, c in answers.items()}
    limits = dict(existence=0.58, comparison=0.58, count=0.45, position=0.36, color=0.26, background=0.27)
    for kind, limit in limits.items():
        assert majority[kind] < limit, (kind, majority[kind])


def test_unknown_kind_is_an_error(scenes):
    with pytest.raises(ValueError, match="existence"):
        ask(scenes[0], "smell", np.random.default_rng(0))


def test_tokenizer_reads_what_people_type():
    t = tokenizer()
    ids = t("What colour is the Dogs? buses, an apple top-left").input_ids
    assert t.convert_ids_to_tokens(ids) == "what color is the dog ? bus , a apple top-left".split()
    assert len(set(WORDS)) == len(WORDS)
    assert t("zeppelin").input_ids == [t.unk_token_id]
