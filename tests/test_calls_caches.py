"""KV caches that outlive a call: whose prompt they hold, and the positions that go on from them."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import StaticCache

import families
from fsr import FSR, UsageError, prepare, prune

METHOD = FSR(keep=3, relevance="none")
GREEDY = dict(max_new_tokens=4, do_sample=False)
QWEN = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]


@pytest.mark.parametrize("name", QWEN)
@torch.no_grad()
def test_interleaved_conversations(name):
    """Positions of a pruned conversation go on from its own cache, whatever ran in between."""
    model = copy.deepcopy(families.model_of(name))
    one, two = (families.prompts(name, [(1, 0)], seed=s) for s in (0, 1))
    words = families.prompts(name, [(0, 0)])
    with prune(model, METHOD) as pruned:
        first = model(**one, use_cache=True)
        ids, token = pruned.last.input_ids, first.logits[:, -1:].argmax(-1)
        expected = model(input_ids=token, past_key_values=copy.deepcopy(first.past_key_values)).logits
        goes_on = torch.cat([ids, token, torch.tensor([[30, 31]])], 1)
        types = torch.zeros_like(goes_on)
        turn = dict(mm_token_type_ids=types, attention_mask=torch.ones_like(goes_on), **GREEDY)
        spoken = model.generate(goes_on, past_key_values=copy.deepcopy(first.past_key_values), **turn)
        for between in (
            lambda: model(**two),
            lambda: model.generate(**two, **GREEDY),
            lambda: model.generate(**words, **GREEDY),
            lambda: model(**words),
        ):
            between()
            cache = copy.deepcopy(first.past_key_values)
            assert torch.equal(model(input_ids=token, past_key_values=cache).logits, expected)
            between()
            cache = copy.deepcopy(first.past_key_values)
            assert torch.equal(model.generate(goes_on, past_key_values=cache, **turn), spoken)


@torch.no_grad()
def test_an_emptied_cache_forgets():
    """A static cache that is reset and filled with text alone must not bring old positions or placeholders back."""
    name = "qwen2.5-vl"
    model = copy.deepcopy(families.model_of(name))
    model.model.rope_deltas = None
    picture, words = families.prompts(name, [(1, 0)]), families.prompts(name, [(0, 0)])
    token = torch.tensor([[33]])
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    model(**words, past_key_values=cache)
    expected = model(input_ids=token, past_key_values=cache).logits
    with prune(model, METHOD):
        for _ in range(2):
            cache.reset()
            model(**picture, past_key_values=cache)
            cache.reset()
            model(**words, past_key_values=cache)
            assert torch.equal(model(input_ids=token, past_key_values=cache).logits, expected)


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
@torch.no_grad()
def test_caches_filled_elsewhere_are_refused_for_the_true_reason(name):
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    whole = model(**inputs, use_cache=True).past_key_values
    prepared = model(**prepare(model, METHOD, inputs, call="forward"), use_cache=True).past_key_values
    longer = torch.cat([inputs["input_ids"], torch.tensor([[30]])], 1)
    more = {"mm_token_type_ids": torch.zeros_like(longer)} if name in QWEN else {}
    with prune(model, METHOD) as pruned:
        for cache in (whole, prepared):
            with pytest.raises(UsageError, match="not filled inside this block"):
                model.generate(longer, past_key_values=cache, **more, **GREEDY)
        model.generate(**inputs, **GREEDY)
        mine = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(UsageError, match=r"last\.input_ids"):
            model.generate(longer, past_key_values=mine, **more, **GREEDY)
        assert pruned.last.tokens_after == 3


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "gemma3"])
@torch.no_grad()
def test_a_second_turn_from_copied_and_cropped_caches(name):
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    with prune(model, METHOD) as pruned:
        out = model(**inputs, use_cache=True)
        ids = pruned.last.input_ids
        longer = torch.cat([ids, torch.tensor([[30, 31]])], 1)
        types = {k: torch.zeros_like(longer) for k in ("mm_token_type_ids", "token_type_ids") if k in inputs}
        turn = dict(**types, **GREEDY, attention_mask=torch.ones_like(longer))
        expected = model.generate(longer, past_key_values=copy.deepcopy(out.past_key_values), **turn)
        cropped = copy.deepcopy(out.past_key_values)
        model(input_ids=torch.tensor([[40]]), past_key_values=cropped)
        cropped.crop(-1)
        assert torch.equal(model.generate(longer, past_key_values=cropped, **turn), expected)
