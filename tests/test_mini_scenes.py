"""Scenes and questions of the embedded model: reproducible, true, balanced, with held-out pairs kept out of
training."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from fsr.minivlm.questions import KINDS, ask, ask_all
from fsr.minivlm.scenes import (
    SIDE,
    draw,
    held_out_color,
    held_out_quadrant,
)
from fsr.minivlm.vocabulary import MAX_QUESTION, WORDS, encode_words, tokenizer
from scene_truth import truth


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


def test_answers_are_true_and_balanced(scenes):
    rng = np.random.default_rng(0)
    answers = defaultdict(Counter)
    for s in scenes:
        for q in ask_all(s, 8, rng):
            assert q.answer == truth(s, q), (q, s.objects)
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
