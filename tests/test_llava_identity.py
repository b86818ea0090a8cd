"""A budget of all tokens changes nothing, bit for bit, in any decoding mode."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import utils as generation

import tiny
from fsr import FSR, prepare, prune

MODES = {
    "greedy": dict(do_sample=False),
    "sample": dict(do_sample=True, temperature=1.5),
    "beams": dict(num_beams=3),
    "beams-two": dict(num_beams=3, num_return_sequences=2),
    "two-each": dict(do_sample=True, num_return_sequences=2),
    "static": dict(do_sample=False, cache_implementation="static"),
    "no-cache": dict(do_sample=False, use_cache=False),
    "lookup": dict(do_sample=False, prompt_lookup_num_tokens=2),
}
if tiny.CHUNKS_SLICE_PICTURES:
    MODES["chunks"] = dict(do_sample=False, prefill_chunk_size=7)
# Before 5.23 Transformers mixes up the pictures of a row when it repeats them for beams (see test_families_identity).
OLD = not hasattr(generation, "_slice_mm_encoder_output")
WHOLE = FSR(keep=tiny.TOKENS, relevance="none")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny.llava(attention=request.param)


def run(model, inputs, mode):
    torch.manual_seed(3)
    out = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True, output_logits=True, **MODES[mode])
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("positions", ["auto", "original"])
def test_whole_budget_is_identity(model, batch, single, mode, positions):
    for inputs in (batch, single):
        if OLD and inputs is batch and {"num_beams", "num_return_sequences"} & set(MODES[mode]):
            continue
        if mode == "lookup" and inputs is batch:  # Transformers allows it for one row only
            continue
        expected = run(model, inputs, mode)
        with prune(model, WHOLE, positions=positions) as pruned:
            got = run(model, inputs, mode)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert pruned.last.tokens_after == pruned.last.tokens_before == tiny.TOKENS * len(inputs["pixel_values"])


def test_forward_is_identity(model, batch, single):
    for inputs in (batch, single, {k: v for k, v in single.items() if k != "attention_mask"}):
        expected = model(**inputs).logits
        with prune(model, WHOLE):
            assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(**prepare(model, WHOLE, inputs, call="forward")).logits, expected)


def test_half_precision(batch):
    model = tiny.llava().bfloat16()
    expected = run(model, batch, "greedy")
    with prune(model, WHOLE):
        got = run(model, batch, "greedy")
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    with prune(model, FSR(keep=9, relevance="none")) as pruned:
        run(model, batch, "beams")
    assert all(s.features.dtype == torch.bfloat16 and s.saliency.dtype == torch.float32 for s in pruned.last.selections)


def test_modes_differ(model, batch):
    """The modes above are not one and the same run, so that identity means something."""
    width = batch["input_ids"].shape[1]
    texts = {m: run(model, batch, m)[0][:, width:].tolist() for m in ("greedy", "sample", "beams")}
    assert texts["greedy"] != texts["sample"] != texts["beams"] != texts["greedy"]
