"""Scenes at many sizes: reproducible, true to their labels, 96 to 400 visual tokens, with held-out pairs kept out of
training; the question set that is drawn from them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fsr.evaluation.question_set import KINDS, build
from fsr.minivlm.native.language import asked_batch
from fsr.minivlm.native.scenes import CELL, SIZES, TOKEN, draw_native, pick_size
from fsr.minivlm.native.vision import merge_labels
from fsr.minivlm.questions import ask_all
from fsr.minivlm.scenes import held_out_color, held_out_quadrant
from scene_truth import truth


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(12)
    return [draw_native(rng, pick_size(rng), "train" if i % 2 else "test") for i in range(240)]


def test_same_seed_same_bytes():
    a, b = (draw_native(np.random.default_rng(5), (4, 7), "test") for _ in range(2))
    assert np.array_equal(a.image, b.image) and a.objects == b.objects and np.array_equal(a.owner, b.owner)
    assert not np.array_equal(a.image, draw_native(np.random.default_rng(6), (4, 7), "test").image)


def test_sizes_and_counts(scenes):
    assert min(4 * r * c for r, c in SIZES) == 96 and max(4 * r * c for r, c in SIZES) == 400
    assert {(s.image.shape[0] // CELL, s.image.shape[1] // CELL) for s in scenes} == set(SIZES)
    for s in scenes:
        assert s.owner.shape == s.letter.shape == (s.image.shape[0] // TOKEN, s.image.shape[1] // TOKEN)
        cells = [c for o in s.objects for c in o.cells]
        assert len(cells) == len(set(cells)), "two objects share a cell"
        assert set(np.unique(s.owner)) <= {-2, -1, *range(len(s.objects))}
        for i, o in enumerate(s.objects):
            owned = {(int(r) // 2, int(c) // 2) for r, c in np.argwhere(s.owner == i)}
            assert owned and owned <= set(o.cells)  # the raster is the picture's
    things = [len(s.objects) + (s.sign is not None) for s in scenes]
    assert max(things) == 14 and min(things) >= 3


def test_training_never_shows_the_held_out_pairs(scenes):
    out = [
        [held_out_quadrant(o.kind, o.quadrant) or (o.color >= 0 and held_out_color(o.kind, o.color)) for o in s.objects]
        for s in scenes
    ]
    small = [[f for f, o in zip(found, s.objects) if not o.big] for found, s in zip(out, scenes)]
    assert not any(any(f) for f in small[1::2])
    assert sum(map(sum, small[0::2])) > 20, "the test split must show them"


def test_answers_are_true(scenes):
    rng = np.random.default_rng(0)
    seen = Counter()
    for s in scenes:
        for q in ask_all(s, 8, rng):
            assert q.answer == truth(s, q), (q, s.objects)
            seen[q.kind] += 1
            if q.kind == "position":  # never about a thing on the picture's middle line
                x, y = s.objects[q.targets[0]].center
                assert min(abs(x - s.image.shape[1] / 2), abs(y - s.image.shape[0] / 2)) > 0.2 * CELL
    assert min(seen[k] for k in KINDS) > 20


def test_labels_of_visual_tokens_say_what_is_there():
    s = draw_native(np.random.default_rng(3), (4, 12), "train")
    labels = {k: v.reshape(s.owner.shape) for k, v in merge_labels(s).items()}
    assert (labels["row"][0] == 0).all() and (labels["row"][-1] == 11).all()
    assert labels["column"][0].tolist() == sorted(labels["column"][0].tolist())
    for i, o in enumerate(s.objects):
        here = s.owner == i
        assert set(labels["kind"][here]) == {o.kind + 1} and set(labels["color"][here]) == {o.color + 1}
        if not o.big:
            ((r, c),) = o.cells
            right = [p.kind + 1 for p in s.objects if (r, c + 1) in p.cells] or [0]
            assert set(labels["neighbor1"][here]) == set(right)
    batch = asked_batch(np.random.default_rng(3), 2, 4, None, None)
    look = batch.look.view(2, 4, 12, -1).sum(-1)
    assert batch.look.shape[-1] == 1 + batch.labels["kind"].shape[1]
    assert set(look.unique().round(decimals=4).tolist()) <= {0.0, 1.0}


def test_the_question_set_is_even_and_of_its_own():
    native = build("test", 0, 16 * len(KINDS), world="native")
    assert native.sha256 == build("test", 0, 16 * len(KINDS), world="native").sha256
    assert native.sha256 != build("test", 0, 16 * len(KINDS)).sha256 != replace(native, world="mini").sha256
    assert Counter(i.question.kind for i in native.items) == dict.fromkeys(KINDS, 16)
    assert len({s.image.shape for s in native.scenes}) > 8
    for kind, share in {"existence": 0.5, "comparison": 0.5, "count": 0.25, "position": 0.25}.items():
        assert native.majority()[kind] == share
