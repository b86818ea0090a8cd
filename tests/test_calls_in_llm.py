"""Methods inside the language model in calls that are not a plain prompt: drafts behind it, other forwards beside it,
compiled or replaced layers, and language models they cannot read."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from transformers import Cache, LlamaForCausalLM, LlavaConfig

import families
import family_models as fm
import tiny
from fsr import FSR, FeatureError, UnsupportedModelError, UsageError, prune
from fsr.methods import Dart, FastV, PyramidDrop, SparseVLM

BEFORE = FSR(keep=8, relevance="none")
METHODS = {
    "fastv": FastV(layer=1, keep=3),
    "pyramiddrop": PyramidDrop(at=(1,), keep=4),
    "sparsevlm": SparseVLM(at=(1,), keep=4),
    "dart": Dart(layer=1, keep=8),
    "chain": BEFORE | FastV(layer=1, keep=3),
}
GREEDY = dict(max_new_tokens=6, do_sample=False)
takes_back = pytest.mark.skipif(
    "tokens_to_remove" not in inspect.signature(Cache.crop).parameters,
    reason="this Transformers release takes drafts back by the length of the cache: refused",
)


def kept(pruned):
    return [d.rows[0].tolist() for d in pruned.last.in_llm.drops]


def repeating(name, seed=1):
    """A prompt whose last words stand in it before, so that prompt lookup proposes at once."""
    inputs = families.prompts(name, [(1, 0)], seed=seed)
    out = dict(inputs)
    for key, filler in (("input_ids", 40), ("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if key in inputs:
            words = inputs[key][:, -4:]
            out[key] = torch.cat([inputs[key][:, :3], words, torch.full_like(words, filler), inputs[key][:, 3:]], 1)
    return out


@takes_back
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "internvl"])
def test_prompt_lookup(name, method):
    """What is proposed behind the prompt is no part of it: the same tokens are kept, and the same text comes."""
    model, inputs = families.model_of(name), repeating(name)
    with prune(model, METHODS[method]) as pruned:
        expected = model.generate(**inputs, **GREEDY)
        rows = kept(pruned)
        ahead = model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=4, max_matching_ngram_size=2)
        assert kept(pruned) == rows
        assert torch.equal(ahead, expected)


@takes_back
@pytest.mark.parametrize("method", METHODS)
def test_assisted_decoding(method):
    model, draft = copy.deepcopy(families.model_of("llava")), tiny.sharpen(LlamaForCausalLM(fm.text()), 3)
    for seed in (1, 2, 3):
        inputs = families.prompts("llava", [(1, 0)], seed=seed)
        with prune(model, METHODS[method]) as pruned:
            expected = model.generate(**inputs, **GREEDY)
            rows = kept(pruned)
            assisted = model.generate(**inputs, **GREEDY, assistant_model=draft)
            assert kept(pruned) == rows
            assert torch.equal(assisted, expected)


def test_a_model_is_no_assistant_of_its_own():
    model, inputs = families.model_of("llava"), families.prompts("llava", [(1, 0)])
    for method in (BEFORE, FastV(layer=1, keep=3)):
        with prune(model, method), pytest.raises(UsageError, match="assistant"):
            model.generate(**inputs, **GREEDY, assistant_model=model)


# ------------------------------------------------------------------------------------------------- forwards beside it


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("method", ["fastv", "chain"])
@pytest.mark.parametrize("name", ["llava", "llava-next", "internvl"])
def test_classifier_free_guidance(name, method, longer):
    """The negative prompt is another prompt: nothing is cut from it, whatever its length."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    width = inputs["input_ids"].shape[1] if longer else 5
    negative = torch.randint(5, 60, (1, width + 3), generator=torch.Generator().manual_seed(0))
    options = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_scores=True)
    with prune(model, METHODS[method]):
        plain = model.generate(**inputs, **options, output_logits=True)
        guided = model.generate(
            **inputs, **options, guidance_scale=1.5, negative_prompt_ids=negative,
            negative_prompt_attention_mask=torch.ones_like(negative),
        )  # fmt: skip
    with torch.no_grad():
        against = model(input_ids=negative).logits[:, -1].log_softmax(-1)
    first = plain.logits[0].log_softmax(-1)
    by_hand = (1.5 * (first - against) + against).masked_fill(guided.scores[0].isinf(), -torch.inf)
    torch.testing.assert_close(guided.scores[0], by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [6, 26, 60])
@pytest.mark.parametrize("cached", [True, False])
def test_a_forward_of_ones_own_inside_generate(length, cached):
    model, inputs = families.model_of("llava"), families.prompts("llava", [(1, 0)])
    words = torch.randint(5, 60, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, seen = model(input_ids=words).logits, []

    def processor(ids, scores):
        seen.append(model(input_ids=words, use_cache=cached).logits)
        return scores

    with prune(model, FastV(layer=1, keep=3)):
        plain = model.generate(**inputs, **GREEDY, use_cache=cached)
        assert torch.equal(model.generate(**inputs, **GREEDY, use_cache=cached, logits_processor=[processor]), plain)
    assert len(seen) == 6 and all(torch.equal(s, expected) for s in seen)


# --------------------------------------------------------------------------------- hooks that cannot run, and reports


def compiled_module(model):
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")


def compiled_forward(model):
    part = model.model.language_model
    part.forward = torch.compile(part.forward, backend="eager")


def compiled_layers(model):
    for layer in model.model.language_model.layers:
        layer.forward = torch.compile(layer.forward, backend="eager")


def compiled_inner(model):
    model.model = torch.compile(model.model, backend="eager")


@pytest.mark.parametrize("how", [compiled_module, compiled_forward, compiled_layers, compiled_inner])
def test_compiled_language_models_are_refused(single, how):
    """Whether they ran before or not: compiled code keeps no hooks that come later."""
    model = tiny.llava(num_hidden_layers=4)
    how(model)
    for method in (FastV(layer=2, keep=6), BEFORE | FastV(layer=2, keep=6)):
        with pytest.raises(UnsupportedModelError, match="compiled"):
            prune(model, method)
    if how is compiled_module:  # before the language model it works
        with prune(model, BEFORE) as pruned:
            model(**single)
            assert pruned.last.tokens_after == 8


@pytest.mark.parametrize("what", ["language model", "drop layer"])
def test_replaced_inside_the_block(single, what):
    """A hook that should have chosen did not run: nothing was dropped, and nothing would say so."""
    model = tiny.llava(num_hidden_layers=4)
    with prune(model, FastV(layer=2, keep=6)) as pruned:
        model(**single)
        pruned.last = None
        part = model.model.language_model
        if what == "language model":
            model.model.language_model = type(part)(part.config).eval()
        else:
            part.layers[2] = type(part.layers[2])(part.config, 2).eval()
        for call in (lambda: model(**single), lambda: model.generate(**single, **GREEDY)):
            with pytest.raises(UnsupportedModelError, match="hook"):
                call()
        assert pruned.last is None


TEXTS = {
    "Phi3Config": {},
    "DeepseekV3Config": dict(
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, n_routed_experts=2,
        num_experts_per_tok=1, n_group=1, topk_group=1, moe_intermediate_size=16, first_k_dense_replace=3,
    ),
    "PhiConfig": {},
    "StableLmConfig": {},
}  # fmt: skip


@pytest.mark.parametrize("config", TEXTS)
def test_language_models_that_cannot_be_read(config):
    """Fused or compressed projections, rotary over a part of the head: refused before anything is put on."""
    import transformers

    text = getattr(transformers, config)(
        vocab_size=80, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4 if config == "DeepseekV3Config" else 2, max_position_embeddings=512, pad_token_id=0,
        **TEXTS[config],
    )  # fmt: skip
    model = fm.made(
        "LlavaForConditionalGeneration",
        LlavaConfig(vision_config=fm.clip_vision(), text_config=text, image_token_id=70, image_seq_length=16),
        "sdpa",
    )
    before = set(model.__dict__)
    for method in (
        FastV(layer=1, keep=4),
        SparseVLM(at=(1,), keep=4),
        PyramidDrop(at=(1,), keep=4),
        Dart(layer=1, keep=8),
    ):
        with pytest.raises(UnsupportedModelError, match="before the language model"):
            prune(model, method)
    assert set(model.__dict__) == before
    ids = torch.tensor([[1, *[70] * 16, 5, 6]])
    with prune(model, BEFORE) as pruned:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=fm.noise(0, 1, 3, 32, 32),
                       **GREEDY)  # fmt: skip
        assert pruned.last.tokens_after == 8


@pytest.mark.parametrize("where", ["attach", "second hook"])
def test_an_error_while_entering_leaves_nothing(monkeypatch, single, where):
    from fsr.pipeline import in_llm
    from test_pruner_lifecycle import same, snapshot

    model = tiny.llava(num_hidden_layers=4)
    model.generate(**single, **GREEDY)
    before = snapshot(model)
    pruner = prune(model, FastV(layer=2, keep=6))
    calls = []

    def broken(self, *args, **kwargs):
        calls.append(1)
        if where == "attach" or len(calls) > 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    if where == "attach":
        hooks = in_llm.InLLMHooks
        monkeypatch.setattr(hooks, "attach", broken)
    else:
        original = torch.nn.Module.register_forward_pre_hook
        monkeypatch.setattr(torch.nn.Module, "register_forward_pre_hook", broken)
    with pytest.raises(KeyboardInterrupt):
        pruner.apply()
    monkeypatch.undo()
    assert same(before, snapshot(model))
    with prune(model, BEFORE):
        model.generate(**single, **GREEDY)


def test_no_text_behind_the_picture_is_said_before_the_tower_runs():
    model, inputs = families.model_of("llava"), families.prompts("llava", [(1, 0), (1, 0)])
    bad = {k: v.clone() for k, v in inputs.items()}
    last = int((inputs["input_ids"][1] == families.IMAGE).nonzero()[-1])
    bad["input_ids"], bad["attention_mask"] = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
    bad["attention_mask"][1, last + 1 :] = 0
    ran = []
    handle = model.model.vision_tower.register_forward_pre_hook(lambda *a: ran.append(1))
    try:
        for method in (SparseVLM(at=(1,), keep=4), BEFORE | SparseVLM(at=(1,), keep=4)):
            with prune(model, method) as pruned:
                for call in (lambda: model(**bad), lambda: model.generate(**bad, **GREEDY)):
                    with pytest.raises(FeatureError, match="prompt 1"):
                        call()
                assert pruned.last is None and not ran
    finally:
        handle.remove()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_half_reports(error):
    """`last` is the report of the latest finished call; one that failed leaves it alone."""
    model, inputs = families.model_of("llava"), families.prompts("llava", [(1, 0)])

    def stop(ids, scores):
        raise error

    layer = model.model.language_model.layers[1]

    def broken(*_):
        raise error

    for method in (BEFORE, FastV(layer=1, keep=3), BEFORE | FastV(layer=1, keep=3)):
        with prune(model, method) as pruned:
            with pytest.raises(error):
                model.generate(**inputs, **GREEDY, logits_processor=[stop])
            handle = layer.mlp.register_forward_pre_hook(broken)
            try:
                for call in (lambda: model(**inputs), lambda: model.generate(**inputs, **GREEDY)):
                    with pytest.raises(error):
                        call()
            finally:
                handle.remove()
            assert pruned.last is None
            model.generate(**inputs, **GREEDY)
            done = pruned.last
            with pytest.raises(error):
                model.generate(**inputs, **GREEDY, logits_processor=[stop])
            assert pruned.last is done
