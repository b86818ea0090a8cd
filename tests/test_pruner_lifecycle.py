"""Applying and removing: nothing stays behind, copies work, and errors leave the model as it was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fsr
import tiny
from fsr import FSR, FeatureError, RelevanceError, UnsupportedModelError, UsageError, prepare, prune

METHOD = FSR(keep=9, relevance="none")
GREEDY = dict(max_new_tokens=4, do_sample=False)


def snapshot(model):
    """Everything that pruning could leave behind, of every module: attributes, hooks, class, weights."""
    hooks = [
        (name, key, len(value))
        for name, m in model.named_modules()
        for key, value in m.__dict__.items()
        if key.endswith("_hooks") or ("_hooks_" in key and isinstance(value, dict))
    ]
    keys = [(name, type(m), sorted(m.__dict__)) for name, m in model.named_modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    return hooks, keys, weights, pickle.dumps(model.config.to_dict()), pickle.dumps(model.generation_config.to_dict())


def same(a, b):
    return a[:2] == b[:2] and a[3:] == b[3:] and all(torch.equal(a[2][k], b[2][k]) for k in a[2])


@pytest.fixture
def model(llava, single):
    llava.generate(**single, **GREEDY)  # Transformers installs its own capture hooks lazily
    return llava


def test_leaving_restores_everything(model, single):
    before, text = snapshot(model), model.generate(**single, **GREEDY)
    with prune(model, METHOD) as pruned:
        assert "generate" in model.__dict__
        inside = model.generate(**single, **GREEDY)
        model(**single)
        assert set(model.state_dict()) == set(before[2])
    assert same(before, snapshot(model))
    assert model.generate.__func__ is type(model).generate
    assert torch.equal(model.generate(**single, **GREEDY), text)
    assert not torch.equal(inside, text)
    with pruned:  # the same object may be used again
        assert torch.equal(model.generate(**single, **GREEDY), inside)
    assert same(before, snapshot(model))


def test_constructing_does_nothing(model):
    before = snapshot(model)
    prune(model, METHOD)
    prepare(model, METHOD, tiny.prompts(tiny.llava_processor(), [tiny.chat(("where ?", 1))], [tiny.picture(0)]))
    assert same(before, snapshot(model))


def test_errors_inside_restore(model, single):
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), prune(model, METHOD):
        raise ZeroDivisionError
    assert same(before, snapshot(model))
    with prune(model, METHOD):
        inside = snapshot(model)
        for change in (
            {"pixel_values": single["pixel_values"].repeat(2, 1, 1, 1)},
            {"pixel_values": single["pixel_values"] * torch.nan},
            {"attention_mask": torch.ones(1, 1, 4, 4)},
            {"input_ids": single["input_ids"][0]},
        ):
            with pytest.raises((FeatureError, UsageError)):
                model.generate(**{**single, **change}, **GREEDY)
            assert same(inside, snapshot(model))
        embeds = model.get_input_embeddings()(single["input_ids"])
        with pytest.raises(UsageError, match="inputs_embeds"):
            model.generate(**single, inputs_embeds=embeds, **GREEDY)
    assert same(before, snapshot(model))


def test_second_apply_is_refused(model, single):
    text = model.generate(**single, **GREEDY)
    with prune(model, METHOD) as first:
        with pytest.raises(UsageError, match="already"), prune(model, FSR(keep=3, relevance="none")):
            pass
        with pytest.raises(UsageError, match="already"):
            first.apply()
        model.generate(**single, **GREEDY)
        assert first.last.tokens_after == 9
    with pytest.raises(UsageError, match="not applied"):
        first.remove()
    assert torch.equal(model.generate(**single, **GREEDY), text)


def test_replaced_generate_is_noticed(llava):
    model = copy.deepcopy(llava)
    pruner = prune(model, METHOD).apply()
    model.generate = lambda **kwargs: None
    with pytest.raises(UsageError, match="replaced"):
        pruner.remove()
    assert "_fsr_pruner" not in model.__dict__


def test_an_instance_generate_is_kept(llava, single):
    """Transformers puts a `generate` on the instance for models with custom generation."""
    model = copy.deepcopy(llava)
    calls = []

    def custom(*args, **kwargs):
        calls.append(sorted(kwargs))
        return type(model).generate(model, *args, **kwargs)

    model.generate = custom
    with prune(model, METHOD) as pruned:
        model.generate(**single, **GREEDY)
    assert model.generate is custom and "mm_encoder_outputs" in calls[0] and pruned.last.tokens_after == 9


def test_copy_inside_the_block(llava, single):
    model = copy.deepcopy(llava)
    full = model.generate(**single, **GREEDY)
    with prune(model, METHOD):
        text = model.generate(**single, **GREEDY)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            model.lm_head.weight.neg_()
        assert torch.equal(twin.generate(**single, **GREEDY), text)  # its own weights
        assert not torch.equal(model.generate(**single, **GREEDY), text)
        assert twin(**single).logits.shape[1] < single["input_ids"].shape[1]
        seat = twin.__dict__["_fsr_pruner"]
        assert seat.model is twin and seat.adapter.model is twin and seat.adapter.base is twin.model
        third = copy.deepcopy(twin)
        assert torch.equal(third.generate(**single, **GREEDY), text)
    # Free with the block, as the original is.
    for free in (twin, third):
        assert "_fsr_pruner" not in free.__dict__ and "generate" not in free.__dict__
        assert torch.equal(free.generate(**single, **GREEDY), full)
        assert free(**single).logits.shape[1] == single["input_ids"].shape[1]
    assert torch.equal(twin.generate(**single, **GREEDY), full)
    assert "generate" not in twin.__dict__ and not twin._forward_pre_hooks and not twin._forward_hooks


def test_save_inside_the_block(llava, single, tmp_path):
    with prune(llava, METHOD):
        llava.save_pretrained(tmp_path)
    loaded = type(llava).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.generate(**single, **GREEDY), llava.generate(**single, **GREEDY))


def test_unknown_models():
    class Other(nn.Module):
        def forward(self, input_ids):
            return input_ids

    with pytest.raises(UnsupportedModelError, match="takes no `mm_encoder_outputs`: take a model"):
        prune(Other(), METHOD)

    class Newer(nn.Module):
        def forward(self, input_ids, mm_encoder_outputs=None):
            return input_ids

    with pytest.raises(UnsupportedModelError, match="no adapter"):
        prune(Newer(), METHOD)


def test_missing_twin_is_an_error_before_anything_happens(llava):
    before = snapshot(llava)
    with pytest.raises(RelevanceError, match="relevance='none'"):
        prune(llava, FSR(keep=9))
    with pytest.raises(UsageError, match="positions"):
        prune(llava, METHOD, positions="none")
    assert same(before, snapshot(llava))


def test_public_names():
    assert all(hasattr(fsr, name) for name in fsr.__all__)
    assert callable(fsr.prepare) and callable(fsr.prune)
