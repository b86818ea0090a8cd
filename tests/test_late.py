"""Late: drops inside the language model by FSR's own order of choice, down to no visual token at all."""

from __future__ import annotations

import copy

import pytest
import torch

import families
import tiny
from fsr import FSR, prepare, prune
from fsr.errors import BudgetError, UnsupportedModelError, UsageError
from fsr.methods import FastV, Late

GREEDY = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
BEFORE = FSR(keep=6, relevance="none")
NAMES = ["llava", "llava-next", "qwen2.5-vl", "qwen3-vl", "internvl", "smolvlm"]


def model_of(name):
    return copy.deepcopy(families.model_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_of_the_order_stay(name):
    model, inputs = model_of(name), families.prompts(name, [(2, 0)])
    depth = len(model.get_decoder().layers)
    with prune(model, BEFORE | Late({depth - 1: 2})) as pruned:
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    (drop,) = pruned.last.in_llm.drops
    for selection, rows in zip(pruned.last.selections, drop.rows):
        first = selection.order.argsort()[:2].sort().values
        assert torch.equal(rows.cpu(), first.cpu())
    lengths = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert lengths[-1] == lengths[0] - sum(s.kept - 2 for s in pruned.last.selections)


def test_shapes_per_layer_do_not_depend_on_what_the_pictures_show():
    model, found = model_of("qwen2.5-vl"), []
    for seed in (1, 2):
        inputs = families.prompts("qwen2.5-vl", [(2, 0)])
        noise = torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(seed))
        inputs["pixel_values"] = noise.to(inputs["pixel_values"].dtype)
        with prune(model, BEFORE | Late({1: 2})):
            out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        found.append([layer.keys.shape for layer in out.past_key_values.layers])
    assert found[0] == found[1] and found[0][0] != found[0][-1]


def test_none_left_equals_the_text_alone_from_there_on():
    """After a drop of everything the last layers hold text only, and later steps count positions as before."""
    model, inputs = model_of("llava"), families.prompts("llava", [(1, 0)])
    depth = len(model.get_decoder().layers)
    with prune(model, BEFORE | Late({depth - 1: 0})) as pruned:
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert all(len(rows) == 0 for rows in pruned.last.in_llm.drops[-1].rows)
    text = inputs["input_ids"].shape[1] - pruned.last.tokens_before
    assert out.past_key_values.layers[-1].get_seq_length() == text + 3
    assert torch.stack(out.logits).isfinite().all()


def test_equal_to_masked_columns():
    """Against a run in which the dropped columns stay and a mask hides them from the layers behind the drop."""
    inputs = families.prompts("llava", [(1, 0)])
    family = model_of("llava")
    with torch.no_grad(), prune(family, BEFORE | Late({1: 3})) as pruned:
        short = family(**inputs).logits[:, -1]
    entered = prepare(family, BEFORE, inputs)
    gone = set(range(pruned.last.tokens_after)) - set(pruned.last.in_llm.drops[0].rows[0].tolist())
    columns = (entered["input_ids"][0] == family.config.image_token_id).nonzero().squeeze(-1)[sorted(gone)]

    def hide(layer, args, kwargs):
        n = entered["input_ids"].shape[1]
        mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
        mask[:, columns] = torch.finfo(torch.float32).min
        mask[columns, columns] = 0.0
        return args, {**kwargs, "attention_mask": mask[None, None]}

    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in family.get_decoder().layers[1:]]
    with torch.no_grad():
        family.set_attn_implementation("eager")
        long = family(**entered.inputs).logits[:, -1]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-5)


def test_a_picture_kept_whole_has_an_order_too():
    model, inputs = model_of("llava"), families.prompts("llava", [(1, 0)])
    total = prepare(model, FSR(keep=1.0, relevance="none"), inputs).report.tokens_before
    with prune(model, FSR(keep=total, relevance="none") | Late({1: 3})) as pruned:
        model.generate(**inputs, **GREEDY)
    best = prepare(model, FSR(keep=total - 1, relevance="none"), inputs).report.selections[0]
    first = best.rows[best.order.argsort()[:3]].sort().values
    assert torch.equal(pruned.last.in_llm.drops[0].rows[0], first)


def test_with_a_second_method_and_in_a_batch():
    model = tiny.llava(num_hidden_layers=4)
    processor = tiny.llava_processor()
    chats = [tiny.chat(("what is this ?", 2)), tiny.chat(("where ?", 1))]
    pictures = [tiny.picture(0), tiny.picture(1), tiny.picture(2)]
    chain = FSR(keep=8, relevance="none") | FastV(layer=1, keep=5) | Late({3: 1})
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    with prune(model, chain) as pruned:
        both = model.generate(**tiny.prompts(processor, chats, pictures), **options)
        assert [len(r) for r in pruned.last.in_llm.drops[-1].rows] == [1, 1, 1]
        last = model.generate(**tiny.prompts(processor, chats[1:], pictures[2:]), **options)
    torch.testing.assert_close(torch.stack(both.logits)[:, 1:], torch.stack(last.logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Late(), UsageError, "name the layers"),
        (lambda: Late({}), UsageError, "name the layers"),
        (lambda: Late({1: 4}, at=(1,)), UsageError, "not in both"),
        (lambda: Late({1.5: 4}), UsageError, "whole numbers"),
        (lambda: Late({1: -1}), BudgetError, "keeps nothing"),
        (lambda: Late({1: 1.5}), BudgetError, "no share"),
        (lambda: Late((4, 2), at=(1,)), BudgetError, "one value per layer"),
        (lambda: FSR(keep=4) | Late({1: 9}), UsageError, "smaller budget"),
    ],
)
def test_bad_options(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_a_model_cannot_do():
    model = model_of("llava")
    with pytest.raises(UsageError, match="FSR"):
        prune(model, Late({1: 4}))
    with pytest.raises(UsageError, match="layers 0 to"):
        prune(model, BEFORE | Late({99: 4}))
    with pytest.raises(UsageError, match="must rise"):
        prune(model, BEFORE | Late({2: 4, 1: 2}))
    deep = model_of("qwen3-vl")
    with pytest.raises((UnsupportedModelError, UsageError)):
        prune(deep, BEFORE | Late({0: 4}))


def test_one_value_for_several_layers_falls_geometrically():
    assert Late(0.25, at=(1, 2)).budgets(100, 4) == (50, 25)
    assert Late(0, at=(1, 2)).budgets(100, 4)[-1] == 0
    assert Late({1: 0.5, 2: 0}).budgets(100, 4) == (50, 0)
    assert Late({2: 0}).layer_average(100, 4) == 50.0
