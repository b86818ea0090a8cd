"""The question set: the same bytes for the same seed, even in kinds and answers, apart from training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fsr.asking.images import bundled_scene
from fsr.errors import UsageError
from fsr.evaluation import question_set
from fsr.evaluation.question_set import KINDS, REFERENCE, build
from fsr.minivlm.scenes import draw, held_out_color, held_out_quadrant


@pytest.fixture(scope="module")
def full():
    return build("test", 0, 2000)


@pytest.mark.parametrize(("world", "split", "seed", "count"), sorted(REFERENCE))
def test_the_published_sets_have_their_bytes(full, world, split, seed, count):
    shipped = np.asarray(bundled_scene())
    if not np.array_equal(draw(np.random.default_rng(107), "test").image, shipped):
        pytest.skip(
            f"NumPy {np.__version__} on this processor rounds pictures differently: the published hash is of others"
        )
    drawn = full if (world, split, seed, count) == ("mini", "test", 0, 2000) else build(split, seed, count, world)
    assert drawn.sha256 == REFERENCE[world, split, seed, count]
    assert drawn.note is None


def test_the_hash_sees_pictures_questions_and_answers():
    small = build("test", 0, 16)
    assert build("test", 0, 16).sha256 == small.sha256
    pixel = small.scenes[0].image.copy()
    pixel[5, 7, 1] ^= 1
    item = small.items[3]
    wrong = replace(item, question=replace(item.question, answer="frog"))
    other = [
        build("test", 1, 16),
        build("validation", 0, 16),
        replace(small, scenes=(replace(small.scenes[0], image=pixel), *small.scenes[1:])),
        replace(small, items=(*small.items[:3], wrong, *small.items[4:])),
    ]
    assert len({small.sha256, *(o.sha256 for o in other)}) == 5


def test_another_rounding_is_announced(monkeypatch):
    small = build("test", 0, 16)
    assert small.note is None  # nothing is published for 16 questions
    monkeypatch.setitem(question_set.REFERENCE, ("mini", "test", 0, 16), "0" * 64)
    assert np.__version__ in small.note and "published" in small.note


def test_kinds_and_answers_are_even(full):
    assert Counter(i.question.kind for i in full.items) == dict.fromkeys(KINDS, 250)
    blind = full.majority()
    for kind, answers in {
        "existence": 2,
        "comparison": 2,
        "count": 4,
        "position": 4,
        "color": 6,
        "background": 6,
    }.items():
        assert blind[kind] <= -(-250 // answers) / 250
        assert len({i.question.answer for i in full.items if i.question.kind == kind}) == answers
    assert blind["neighbor"] < 0.1 and blind["reading"] < 0.1
    assert len({(i.scene, i.question.kind) for i in full.items}) == 2000
    assert [i.scene for i in full.items] == sorted(i.scene for i in full.items)


def test_flags_say_what_training_never_showed(full):
    for item in full.items[::7]:
        scene, q = full.scenes[item.scene], item.question
        asked = [scene.objects[t] for t in q.targets if t >= 0]
        assert item.held_out_color == any(o.color >= 0 and held_out_color(o.kind, o.color) for o in asked)
        assert item.held_out_quadrant == any(held_out_quadrant(o.kind, o.quadrant) for o in asked)
        names = {o.kind for o in scene.objects} | ({"sign"} if scene.sign else set()) | {"ground"}
        assert item.things == len(names)
        assert item.patches == sum(int((scene.owner == t).sum()) for t in q.targets)
    assert sum(i.held_out_color for i in full.items) > 100 and sum(i.held_out_quadrant for i in full.items) > 100


def test_no_picture_is_shared_with_training_or_validation(full):
    """Training draws from [seed, rank, step] with small seeds; SeedSequence pads short seeds with zeros."""
    seen = {s.image.tobytes() for s in full.scenes}
    assert len(seen) == len(full.scenes)
    assert not seen & {s.image.tobytes() for s in build("validation", 0, 400).scenes}
    for seed in range(6):
        for step in range(4):
            assert draw(np.random.default_rng([seed, 0, step]), "test").image.tobytes() not in seen


@pytest.mark.parametrize("arguments", [("training", 0, 16), ("test", 0, 15), ("test", 0, 0), ("test", -1, 16)])
def test_impossible_sets_are_refused(arguments):
    with pytest.raises(UsageError):
        build(*arguments)
