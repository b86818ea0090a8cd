"""What `positions="auto"` decides with 1-D positions, and calls that go on from a cache whose numbers have gaps."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

import families
import tiny
from fsr import FSR, prepare, prune
from fsr.errors import UsageError
from fsr.pipeline.conversation import Conversation
from fsr.pipeline.positions import policy_of

GREEDY = dict(max_new_tokens=5, do_sample=False)


def test_few_tokens_keep_their_numbers(llava, single):
    """36 tokens: from a twelfth, 3, on they are numbered anew."""
    for keep, policy in ((1, "original"), (2, "original"), (3, "repack"), (36, "repack")):
        ready = prepare(llava, FSR(keep=keep, relevance="none"), single)
        assert ready.report.positions == policy
    auto = prepare(llava, FSR(keep=2, relevance="none"), single)
    forced = prepare(llava, FSR(keep=2, relevance="none"), single, positions="original")
    assert torch.equal(auto["position_ids"], forced["position_ids"])
    assert int(auto["position_ids"].max()) == single["input_ids"].shape[1] - 1
    assert prepare(llava, FSR(keep=2, relevance="none"), single, positions="repack").report.positions == "repack"


def test_who_decides():
    one = SimpleNamespace(position_policy="repack", positions=lambda inputs: None)
    many = SimpleNamespace(position_policy="original", positions=lambda inputs: torch.zeros(3, 1, 4))
    few, most = [(0, 1, 100)], [(0, 50, 100)]
    assert policy_of(one, "auto", {}, None, few) == ("original", ())
    assert policy_of(one, "auto", {}, None, most) == ("repack", ())
    assert policy_of(one, "auto", {}, None, []) == ("repack", ())
    assert policy_of(one, "auto", {}, torch.zeros(1, 4), few) == ("repack", ())  # packed prompts
    assert policy_of(one, "auto", {"position_ids": torch.zeros(1, 4)}, None, most) == ("original", ())
    assert policy_of(many, "auto", {}, None, most) == ("original", ())
    # Pictures of one prompt count together; a row that loses nothing has no say.
    assert policy_of(one, "auto", {}, None, [(0, 1, 100), (0, 30, 100)]) == ("repack", ())
    assert policy_of(one, "auto", {}, None, [(0, 1, 100), (1, 100, 100)]) == ("original", ())
    assert policy_of(one, "auto", {}, None, [(0, 1, 100), (2, 50, 100)]) == ("mixed", (2,))


@pytest.mark.parametrize("call", ["generate", "forward"])
def test_rows_of_one_batch_decide_for_themselves(llava, processor, batch, call):
    """The row with two pictures keeps 21 of 72 tokens, the one with one keeps 1 of 36."""
    method = FSR(keep=lambda number, of, *_: 20 if number else 1, relevance="none")
    alone = [
        tiny.prompts(processor, [tiny.chat(("what colour is the dog ?", 2))], [tiny.picture(0), tiny.picture(1)]),
        tiny.prompts(processor, [tiny.chat(("where is the cat ?", 1))], [tiny.picture(2)]),
    ]
    with prune(llava, method) as pruned:
        if call == "generate":
            out = llava.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
        else:
            out = llava(**batch).logits[:, -1]
        assert pruned.last.positions == "mixed"
        for row, (inputs, policy) in enumerate(zip(alone, ("repack", "original"))):
            if call == "generate":
                assert torch.equal(llava.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :], out[row])
            else:
                assert (llava(**inputs).logits[0, -1] - out[row]).abs().max() < 2e-5 * out[row].abs().max()
            assert pruned.last.positions == policy


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma"])
@torch.no_grad()
def test_steps_by_hand_go_on_after_the_full_prompt(name):
    """A loop over `forward`, and a second `generate` from the cache, say what one `generate` says."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    with prune(model, FSR(keep=1, relevance="none")) as pruned:
        whole = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
        assert pruned.last.positions == "original"
        out = model(**inputs, use_cache=True)
        cache, ids = out.past_key_values, pruned.last.input_ids
        token, said = out.logits[:, -1:].argmax(-1), []
        for step in range(3):
            assert (out.logits[:, -1] - whole.logits[step]).abs().max() < 1e-4 * out.logits.abs().max()
            said.append(token)
            if step == 1:
                kept, so_far = copy.deepcopy(cache), torch.cat([ids, *said], 1)
            out = model(input_ids=token, past_key_values=cache)
            token = out.logits[:, -1:].argmax(-1)
        types = {k: torch.zeros_like(so_far) for k in ("mm_token_type_ids", "token_type_ids") if k in inputs}
        more = model.generate(
            so_far,
            past_key_values=kept,
            attention_mask=torch.ones_like(so_far),
            max_new_tokens=3,
            do_sample=False,
            **types,
        )
    new = whole.sequences[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(more[:, ids.shape[1] :], new)


def test_a_conversation_that_changes_its_numbers():
    """One token of one picture keeps its old number, the same token among many of the next turn gets a new one: what
    the cache holds at another place is not used again."""
    model = copy.deepcopy(families.model_of("llava"))
    method = FSR(keep=lambda number, of, *_: 10 if number else 1, relevance="none")
    talk, policies, reused = Conversation(model, method), [], []
    for pictures in (1, 2, 3):
        inputs = families.prompts("llava", [(pictures, 0)])
        out = talk.generate(**inputs, **GREEDY)
        with prune(model, method):
            assert torch.equal(out, model.generate(**inputs, **GREEDY))
        policies.append(talk.last.positions)
        reused.append(talk.reused)
    assert policies == ["original", "repack", "repack"]
    first = int((inputs["input_ids"][0] == families.IMAGE).nonzero()[0])
    assert talk.last.selections[0].rows.item() > 0 and reused[1] == first < reused[2]


@pytest.mark.parametrize("keep", [1, 20])
@pytest.mark.parametrize("name", ["llava", "qwen3-vl"])
@torch.no_grad()
def test_a_talk_over_one_cache_goes_on_for_three_turns(name, keep):
    """A second `generate` from a cache leaves the notes of the pruned prompt on it."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    more = torch.tensor([[5, 6]])
    with prune(model, FSR(keep=keep, relevance="none")) as pruned:
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([pruned.last.input_ids, out.sequences[:, inputs["input_ids"].shape[1] :], more], 1)
        for _ in range(2):
            types = {k: torch.zeros_like(ids) for k in ("mm_token_type_ids",) if k in inputs}
            again = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=out.past_key_values,
                **types,
                **GREEDY,
                return_dict_in_generate=True,
                output_logits=True,
            )
            cached = again.past_key_values.get_seq_length()
            step = model(input_ids=again.sequences[:, -1:], past_key_values=copy.deepcopy(again.past_key_values))
            fresh = prepare(model, FSR(keep=keep, relevance="none"), inputs, call="forward")
            whole = model(**fresh, use_cache=True)
            for token in again.sequences[:, pruned.last.input_ids.shape[1] :].split(1, 1):
                whole = model(input_ids=token, past_key_values=whole.past_key_values)
            assert cached == again.sequences.shape[1] - 1
            assert (step.logits[:, -1] - whole.logits[:, -1]).abs().max() < 1e-4 * whole.logits.abs().max()
            ids, out = torch.cat([again.sequences, more], 1), again


@pytest.mark.parametrize("name", ["llava", "gemma3"])
@torch.no_grad()
def test_rows_of_a_cache_that_change_places_take_their_positions_along(name):
    """Beam search by hand reorders and repeats the rows of a cache."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0), (1, 0)])
    with prune(model, FSR(keep=[1, 2], relevance="none"), positions="original") as pruned:
        out = model(**inputs, use_cache=True)
        token = torch.tensor([[5], [6]])
        mask = torch.cat([pruned.last.attention_mask, torch.ones_like(token)], 1)

        def step(order: list[int], change: str, value: object):
            cache = copy.deepcopy(out.past_key_values)
            getattr(cache, change)(value)
            return model(input_ids=token[order], past_key_values=cache, attention_mask=mask[order]).logits

        straight = step([0, 1], "reorder_cache", torch.tensor([0, 1]))
        for order, change, value in (
            ([1, 0], "reorder_cache", torch.tensor([1, 0])),
            ([0, 0, 1, 1], "batch_repeat_interleave", 2),
            ([1], "batch_select_indices", torch.tensor([1])),
        ):
            got = step(order, change, value)
            assert (got - straight[order]).abs().max() < 1e-4 * straight.abs().max()
        if name == "llava":
            inner = model.model(
                input_ids=token, past_key_values=copy.deepcopy(out.past_key_values), attention_mask=mask
            )
            assert (model.lm_head(inner[0]) - straight).abs().max() < 1e-4 * straight.abs().max()
        with pytest.raises(UsageError, match="attention_mask"):
            model(input_ids=token, past_key_values=out.past_key_values)


@torch.no_grad()
def test_rows_that_can_no_longer_be_told_are_refused():
    """The twin has sliding layers only: their columns move, and with them what tells the rows apart."""
    model, inputs = families.model_of("gemma3"), families.prompts("gemma3", [(1, 0), (1, 0)])
    with prune(model, FSR(keep=[1, 2], relevance="none"), positions="original") as pruned:
        out = model(**inputs, use_cache=True)
        mask, cache, token = pruned.last.attention_mask, out.past_key_values, torch.tensor([[5], [6]])
        window = max(layer.sliding_window for layer in cache.layers)
        with pytest.raises(UsageError, match="position_ids"):
            for _ in range(2 * window):
                mask = torch.cat([mask, torch.ones_like(token)], 1)
                model(input_ids=token, past_key_values=cache, attention_mask=mask)
        assert window - 1 <= cache.get_seq_length() <= window + 1
