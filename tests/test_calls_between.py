"""What comes between pruned calls: prompts without pictures, caches cut back, logits of some columns, features of other
pictures."""

from __future__ import annotations

import copy

import pytest
import torch

import families
from fsr import FSR, FeatureError, UsageError, prepare, prune
from fsr.methods import FastV
from fsr.pipeline.conversation import Conversation
from fsr.pipeline.encode import encode
from test_calls_rows import close

METHOD = FSR(keep=3, relevance="none")
GREEDY = dict(max_new_tokens=3, do_sample=False)
SOME = ["llava", "llava-next", "qwen2.5-vl", "internvl", "gemma3", "smolvlm"]


def text_of(width=9):
    """A prompt of plain words as wide as is asked for, the first two columns padding."""
    ids = torch.arange(width)[None] % 5 + 1
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_the_report_of_a_prompt_without_pictures(name):
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    text = text_of()
    for method in (METHOD, METHOD | FastV(layer=1, keep=2))[: 1 if name == "gemma3" else 2]:  # sliding windows
        with prune(model, method) as pruned:
            model(**inputs)
            assert pruned.last.tokens_after == 3
            model(**text)
            last = pruned.last
            assert last.selections == () and last.tokens_before == last.tokens_after == 0
            assert last.length_before == last.length_after == 9
            assert torch.equal(last.attention_mask, text["attention_mask"])
            labels = torch.arange(9)[None]
            assert torch.equal(last.shorten(labels), labels)
            model.generate(**inputs, **GREEDY)
            assert pruned.last.tokens_after == 3
            model.generate(**text, **GREEDY)
            assert pruned.last.selections == () and torch.equal(pruned.last.input_ids, text["input_ids"])


@torch.no_grad()
def test_steps_leave_the_report_of_their_prompt(llava, single):
    with prune(llava, METHOD) as pruned:
        out = llava(**single, use_cache=True)
        mask = pruned.last.attention_mask
        llava(
            input_ids=torch.tensor([[5]]),
            attention_mask=torch.cat([mask, mask.new_ones(1, 1)], 1),
            past_key_values=out.past_key_values,
        )
        assert pruned.last.tokens_after == 3


@torch.no_grad()
def test_compiled_code_leaves_no_report_of_an_earlier_call(llava, single):
    with prune(llava, METHOD) as pruned:
        compiled = torch.compile(llava, backend="eager")
        compiled(**single)
        assert pruned.last.tokens_after == 3
        compiled(**text_of())
        assert pruned.last is None
        compiled(**single)
        assert pruned.last.tokens_after == 3


@torch.no_grad()
def test_pages_of_a_batch_of_texts(llava):
    """`generate_batch` keeps pages in place of a KV cache: texts pass, and a picture's placeholders are refused."""
    config = pytest.importorskip("transformers.generation.configuration_utils")
    if not hasattr(config, "ContinuousBatchingConfig"):
        pytest.skip("this Transformers release sizes its pages otherwise")
    small = config.ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=16, block_size=16)
    model, texts = copy.deepcopy(llava), [[3, 5, 6], [5, 6]]

    def tell(prompts):
        found = model.generate_batch(prompts, continuous_batching_config=small, max_new_tokens=2)
        return [(r.generated_tokens, r.error) for r in found.values()]

    expected = tell(texts)
    with prune(model, METHOD):
        assert tell(texts) == expected
        ((tokens, error),) = tell([[3, llava.config.image_token_id, 5]])
    assert all(e is None for _, e in expected) and not tokens and "no pixels" in error


@torch.no_grad()
def test_a_cache_cut_back_into_a_picture(llava, single):
    with prune(llava, METHOD) as pruned:
        out = llava(**single, use_cache=True)
        ids = pruned.last.input_ids
        first = int((ids[0] == llava.config.image_token_id).nonzero()[0])
        cache = out.past_key_values
        cache.crop(first + 1 - ids.shape[1])
        longer = torch.cat([ids, torch.tensor([[5, 6]])], 1)
        with pytest.raises(FeatureError, match="placeholders and no pixels"):
            llava.generate(longer, past_key_values=copy.deepcopy(cache), **GREEDY)
        with pytest.raises(FeatureError, match="placeholders and no pixels"):
            llava(input_ids=longer[:, first + 1 :], past_key_values=copy.deepcopy(cache))
        behind = int((ids[0] == llava.config.image_token_id).nonzero()[-1]) + 1
        cache = llava(**single, use_cache=True).past_key_values
        expected = llava.generate(longer, past_key_values=copy.deepcopy(cache), **GREEDY)
        cache.crop(behind - ids.shape[1])
        assert torch.equal(llava.generate(longer, past_key_values=cache, **GREEDY), expected)


# ------------------------------------------------------------------------------------------------------- logits_to_keep


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_logits_of_some_columns(name):
    """Columns are those of the user's prompt, as labels are."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    width = inputs["input_ids"].shape[1]
    with prune(model, METHOD) as pruned:
        every = model(**inputs).logits
        columns = pruned.last.columns[0]
        stays = [int(c) for c in columns if c >= 0]
        went = next(c for c in range(width) if c not in stays)
        for wanted in ([stays[-1]], [stays[0], stays[-2]], [-1]):
            got = model(**inputs, logits_to_keep=torch.tensor(wanted)).logits
            assert close(got, every[:, [columns.tolist().index(w % width) for w in wanted]])
        asked = torch.zeros(width, dtype=torch.bool)
        asked[[stays[-3], stays[-1]]] = True
        assert close(model(**inputs, logits_to_keep=asked).logits, every[:, [-3, -1]])
        assert close(model(**inputs, logits_to_keep=2).logits, every[:, -2:])
        with pytest.raises(UsageError, match=f"column {went} of the prompt"):
            model(**inputs, logits_to_keep=torch.tensor([went]))
        for wrong in (torch.tensor([width]), torch.ones(width - 1, dtype=torch.bool), asked[None]):
            with pytest.raises(UsageError, match=f"does not name columns of a prompt of {width}"):
                model(**inputs, logits_to_keep=wrong)


# ---------------------------------------------------------------------------------------------------------- other words


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "llava-next", "smolvlm"])
@torch.no_grad()
def test_features_of_another_picture(name):
    """`encoded` belongs to the pixels that the prompt brings."""
    model = families.model_of(name)
    one, other = (families.prompts(name, [(2, 0)], seed) for seed in (0, 1))
    seen = encode(model, one, METHOD)
    copied = {k: v.clone() for k, v in one.items()}
    first = prepare(model, METHOD, one, encoded=seen)
    assert torch.equal(prepare(model, METHOD, copied, encoded=seen)["input_ids"], first["input_ids"])
    with pytest.raises(UsageError, match="do not bring the pictures that encode"):
        prepare(model, METHOD, other, encoded=seen)
    words = {k: one[k] for k in ("input_ids", "attention_mask")}
    if name in ("llava", "smolvlm"):
        prepare(model, METHOD, words, encoded=seen)  # nothing to compare
    changed = {k: v.clone() for k, v in one.items()}
    seen = encode(model, changed, METHOD)
    changed["pixel_values"] += 1
    with pytest.raises(UsageError, match="do not bring"):
        prepare(model, METHOD, changed, encoded=seen)


@torch.no_grad()
def test_features_in_another_order(llava, single):
    two = families.prompts("llava", [(2, 0)])
    model = families.model_of("llava")
    seen = encode(model, two, METHOD)
    turned = {**two, "pixel_values": two["pixel_values"].flip(0)}
    with pytest.raises(UsageError, match="picture 0 of 2"):
        prepare(model, METHOD, turned, encoded=seen)
    prepare(model, METHOD, turned, encoded=seen.take([1, 0]))
    with pytest.raises(UsageError, match="picture 0 of 2"):
        prepare(model, METHOD, two, encoded=seen.take([1, 0]))
    with pytest.raises(UsageError, match="2 were encoded"):
        prepare(model, METHOD, {**two, "pixel_values": two["pixel_values"][:1]}, encoded=seen)


@torch.no_grad()
def test_a_conversation_returns_what_generate_returns(llava, single):
    talk = Conversation(llava, METHOD)
    with pytest.raises(UsageError, match="no picture has come yet"):
        talk.generate(input_ids=torch.tensor([[3, 4]]))
    with prune(llava, METHOD):
        expected = llava.generate(**single, **GREEDY, return_dict_in_generate=True, output_scores=True)
    got = talk.generate(**single, **GREEDY, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(got.sequences, expected.sequences) and len(got.scores) == 3
    for a, b in zip(got.scores, expected.scores):
        assert close(a.nan_to_num(neginf=0), b.nan_to_num(neginf=0)) and torch.equal(a.isinf(), b.isinf())
    assert torch.equal(talk.generate(**single, **GREEDY), expected.sequences) and talk.reused > 0


def test_max_length_speaks_of_the_users_prompt(llava, single):
    width = single["input_ids"].shape[1]
    with prune(llava, METHOD), pytest.raises(UsageError, match=f"max_length={width} .* prompt of {width} columns"):
        llava.generate(**single, max_length=width)
