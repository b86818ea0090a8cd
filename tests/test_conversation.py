"""A growing prompt: every turn equals a fresh run of the same prompt, and the KV cache of what stayed is used again."""

from __future__ import annotations

import copy

import pytest
import torch

import families
from fsr import FSR, prune
from fsr.errors import UnsupportedModelError, UsageError
from fsr.methods import Downscale, FastV, by_age
from fsr.pipeline.conversation import Conversation

CAUSAL = ["llava", "llava-next", "llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "smolvlm"]
METHOD = FSR(keep=by_age(newest=0.6, older=3, oldest=1, recent=2), relevance="none")
NEW = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)


def turn(name, pictures):
    """The prompt of a turn: the same pictures as before, and one more."""
    return families.prompts(name, [(pictures, 0)])


@pytest.mark.parametrize("name", [n for n in CAUSAL if n in families.FAMILIES])
def test_every_turn_equals_a_fresh_run(name):
    model = copy.deepcopy(families.model_of(name))
    talk, reused = Conversation(model, METHOD), []
    for pictures in (1, 2, 3, 4, 5):
        inputs = turn(name, pictures)
        out = talk.generate(**inputs, **NEW)
        with prune(model, METHOD, question_for="newest") as fresh:
            expected = model.generate(**inputs, **NEW)
        assert torch.equal(out, expected), pictures
        for a, b in zip(talk.last.selections, fresh.last.selections):
            assert torch.equal(a.rows, b.rows)
        reused.append(talk.reused)
    assert reused[0] == 0 and max(reused[2:]) > reused[1] >= 0 and reused[-1] > 0, reused


def test_pictures_are_encoded_once(monkeypatch):
    model = copy.deepcopy(families.model_of("qwen2.5-vl"))
    talk, runs = Conversation(model, METHOD), []
    handle = model.model.visual.register_forward_hook(lambda *a: runs.append(1))
    for pictures in (1, 2, 3):
        talk.generate(**turn("qwen2.5-vl", pictures), **NEW)
    handle.remove()
    assert len(runs) == 3


def test_the_same_prompt_again_runs_one_column():
    model = copy.deepcopy(families.model_of("llava"))
    talk = Conversation(model, FSR(keep=3, relevance="none"))
    first = talk.generate(**turn("llava", 2), **NEW)
    assert torch.equal(talk.generate(**turn("llava", 2), **NEW), first)
    assert talk.reused == talk.last.length_after - 1


def test_another_picture_in_the_past_is_noticed():
    model = copy.deepcopy(families.model_of("llava"))
    talk = Conversation(model, FSR(keep=3, relevance="none"))
    inputs = turn("llava", 2)
    talk.generate(**inputs, **NEW)
    changed = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    with prune(model, FSR(keep=3, relevance="none")):
        expected = model.generate(**changed, **NEW)
    assert torch.equal(talk.generate(**changed, **NEW), expected)
    marks = (talk.last.input_ids[0] == model.config.image_token_id).nonzero()
    assert talk.reused <= int(marks[0])


def test_what_was_hidden_then_and_is_seen_now_stands_in_no_cache():
    model = copy.deepcopy(families.model_of("llava"))
    method, inputs = FSR(keep=3, relevance="none"), turn("llava", 2)
    hole = inputs["attention_mask"].clone()
    hole[0, 1] = 0
    for masks in ((hole, inputs["attention_mask"]), (inputs["attention_mask"], hole)):
        talk = Conversation(model, method)
        for mask in masks:
            out = talk.generate(**{**inputs, "attention_mask": mask}, **NEW)
            with prune(model, method):
                assert torch.equal(out, model.generate(**{**inputs, "attention_mask": mask}, **NEW))


@pytest.mark.parametrize("limit", [{"max_length": 3}, {"min_length": 3, "max_new_tokens": 5}])
def test_limits_that_count_the_prompt(limit):
    model, inputs = copy.deepcopy(families.model_of("llava")), turn("llava", 2)
    length = inputs["input_ids"].shape[1]
    given = {k: v + length if k.endswith("length") else v for k, v in limit.items()}
    talk = Conversation(model, FSR(keep=3, relevance="none"))
    for _ in range(2):
        out = talk.generate(**inputs, **given, do_sample=False)
        with prune(model, FSR(keep=3, relevance="none")):
            assert torch.equal(out, model.generate(**inputs, **given, do_sample=False))


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
    ],
)
def test_settings_without_one_plain_cache_are_refused(setting):
    talk = Conversation(copy.deepcopy(families.model_of("llava")), METHOD)
    with pytest.raises(UsageError, match="one plain row"):
        talk.generate(**turn("llava", 1), max_new_tokens=2, **setting)


def test_an_error_leaves_the_next_turn_right():
    model = copy.deepcopy(families.model_of("llava"))
    talk = Conversation(model, METHOD)
    talk.generate(**turn("llava", 1), **NEW)

    def fail(*args):
        raise KeyboardInterrupt

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        talk.generate(**turn("llava", 2), **NEW)
    handle.remove()
    with prune(model, METHOD, question_for="newest"):
        expected = model.generate(**turn("llava", 2), **NEW)
    assert torch.equal(talk.generate(**turn("llava", 2), **NEW), expected)


def test_refusals():
    model = copy.deepcopy(families.model_of("llava"))
    talk = Conversation(model, METHOD)
    with pytest.raises(UsageError, match="one prompt"):
        talk.generate(**families.prompts("llava", [(1, 0), (1, 0)]), **NEW)
    with pytest.raises(UsageError, match="keeps its KV cache itself"):
        talk.generate(**turn("llava", 1), past_key_values=object(), **NEW)
    for method in (FSR(keep=4, relevance="none") | FastV(layer=1, keep=2), Downscale(pixels=9), "fsr"):
        with pytest.raises(UsageError, match="before the language model"):
            Conversation(model, method)
    for name in ("gemma3", "paligemma"):
        with pytest.raises(UnsupportedModelError, match="later ones"):
            Conversation(families.model_of(name), METHOD)
