"""Every family: a budget of all tokens changes nothing, bit for bit, in any decoding mode."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import utils as generation

import families
from fsr import FSR, prune

MODES = {
    "greedy": dict(do_sample=False),
    "sample": dict(do_sample=True, temperature=1.5),
    "beams": dict(num_beams=2, num_return_sequences=2),
    "two-each": dict(do_sample=True, num_return_sequences=2),
    "static": dict(do_sample=False, cache_implementation="static"),
    "no-cache": dict(do_sample=False, use_cache=False),
}
# Before 5.23 Transformers repeats pictures for beams one by one, [A, A, B, B] instead of [A, B, A, B]: rows with
# several
# pictures or tiles are wrong there without pruning (and right with it), so identity is only asked of one tile per row.
# GLM's own repetition does so in every release.
OLD = not hasattr(generation, "_slice_mm_encoder_output")


WHOLE = FSR(keep=9999, relevance="none")


def run(model, inputs, mode):
    torch.manual_seed(3)
    out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **MODES[mode])
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_whole_budget_is_identity(name, attention, feature):
    model = families.model_of(name, attention)
    batch = families.prompts(name, families.mixed(name))
    one_each = families.prompts(name, [(1, 0), (0, 0)])
    for mode, options in MODES.items():
        several = bool({"num_beams", "num_return_sequences"} & set(options))
        if OLD and several and name.startswith("qwen3.5"):
            continue  # there even the first step of one picture differs from greedy decoding, unpruned
        if (several and name == "llama4") or (OLD and mode == "static" and name in ("gemma4", "llama4")):
            continue  # Transformers fails there without pruning, or answers wrongly: refused, see the settings
        inputs = one_each if several and (OLD or name.startswith("glm")) else batch
        expected = run(model, inputs, mode)
        with prune(model, WHOLE) as pruned:
            got = run(model, inputs, mode)
        assert torch.equal(got[0], expected[0]), mode
        assert torch.equal(got[1], expected[1]), mode
        assert pruned.last.tokens_after == pruned.last.tokens_before > 0
    feature(name, f"K = N identity ({attention})")


@pytest.mark.parametrize("name", [n for n, f in families.FAMILIES.items() if not f.mixes])
def test_clips_alone_are_identity(name):
    model, inputs = families.model_of(name), families.prompts(name, [(0, 1), (0, 0)])
    for mode in ("greedy", "static", "no-cache"):  # with beams Transformers itself fails on clips here
        expected = run(model, inputs, mode)
        with prune(model, WHOLE) as pruned:
            got = run(model, inputs, mode)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1]), mode
        assert pruned.last.tokens_before > 0


@pytest.mark.parametrize("name", families.FAMILIES)
def test_forward_is_identity_and_model_is_left_as_it_was(name):
    model = families.model_of(name)
    before = set(model.__dict__)
    for rows in (families.mixed(name), [(1, 0)], [(0, 0)]):
        inputs = families.prompts(name, rows)
        expected = model(**inputs).logits
        with prune(model, WHOLE):
            assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)
    assert set(model.__dict__) == before
