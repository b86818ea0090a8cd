"""Other people's wrappers around the model or its methods: right, or refused by name, and never in the user's way."""

from __future__ import annotations

import copy
import functools
import io
import types
import warnings

import pytest
import torch
from torch import nn

import families
import tiny
from fsr import FSR, RelevanceError, UnsupportedModelError, UsageError, prepare, prune
from fsr.asking.chat import chat_inputs
from fsr.asking.encoded_picture import EncodedPicture
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.methods import FastV
from fsr.pipeline.encode import encode

METHOD = FSR(keep=9, relevance="none")
GREEDY = dict(max_new_tokens=4, do_sample=False)


@pytest.fixture(scope="module")
def mini():
    return load("mini", device="cpu")


@pytest.fixture(scope="module")
def scene(mini):
    return chat_inputs(mini[1], bundled_scene(), "what color is the dog?")


@pytest.fixture
def model(llava):
    return copy.deepcopy(llava)


@pytest.fixture(scope="module")
def expected(llava, single):
    with prune(llava, METHOD):
        return llava.generate(**single, **GREEDY)


# ------------------------------------------------------------------------------------------------------------ generate


def by_arguments(old, self):
    return types.MethodType(lambda self, *a, **k: old(*a, **k), self)


def by_function(old, self):
    return lambda *a, **k: old(*a, **k)


def by_name(old, self):
    def generate(prompt, **k):
        return old(prompt, **k)

    return generate


def by_other_order(old, self):
    def generate(pixel_values=None, input_ids=None, **k):
        return old(input_ids, **k) if pixel_values is None else old(input_ids, pixel_values=pixel_values, **k)

    return generate


WRAPPERS = {
    "arguments": by_arguments,
    "function": by_function,
    "name": by_name,
    "wraps": lambda old, self: functools.wraps(old)(lambda *a, **k: old(*a, **k)),
    "partial": lambda old, self: functools.partial(old, use_cache=True),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_generate_was_wrapped_before(model, single, expected, name):
    model.generate = WRAPPERS[name](model.generate, model)
    rest = {k: v for k, v in single.items() if k != "input_ids"}
    words = {k: v for k, v in rest.items() if k == "attention_mask"}
    plain = model.generate(single["input_ids"][:, -4:], attention_mask=words["attention_mask"][:, -4:], **GREEDY)
    with prune(model, METHOD) as pruned:
        assert torch.equal(model.generate(single["input_ids"], **rest, **GREEDY), expected)
        assert pruned.last.tokens_after == 9
        if name != "name":
            assert torch.equal(model.generate(**single, **GREEDY), expected)
        again = model.generate(single["input_ids"][:, -4:], attention_mask=words["attention_mask"][:, -4:], **GREEDY)
        assert torch.equal(again, plain)


def test_generate_with_another_order(model, single, expected):
    model.generate = by_other_order(model.generate, model)
    rest = {k: v for k, v in single.items() if k not in ("input_ids", "pixel_values")}
    with prune(model, METHOD):
        assert torch.equal(model.generate(single["pixel_values"], single["input_ids"], **rest, **GREEDY), expected)


def test_wrapped_inside_the_block(model, single, expected):
    """The user's own exception comes out; later calls work, and so does a later block."""
    plain = model.generate(**single, **GREEDY)
    with pytest.warns(UserWarning, match="replaced"), pytest.raises(ZeroDivisionError):
        with prune(model, METHOD):
            model.generate = by_arguments(model.generate, model)
            assert torch.equal(model.generate(**single, **GREEDY), expected)
            raise ZeroDivisionError
    assert torch.equal(model.generate(**single, **GREEDY), plain)  # the wrapper stays, and leads to the model's own
    with prune(model, METHOD):
        assert torch.equal(model.generate(**single, **GREEDY), expected)
    assert torch.equal(model.generate(**single, **GREEDY), plain)
    with pytest.raises(UsageError, match="replaced"), prune(model, METHOD):
        model.generate = by_arguments(model.generate, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with prune(model, METHOD):  # on and off again inside the block
            mine, model.generate = model.generate, by_arguments(model.generate, model)
            model.generate = mine


# ------------------------------------------------------------------------------------------------------------- forward


def swapped(model, forward):
    """The same weights under a subclass with another forward."""
    cls = type(model)
    model.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    return model


@pytest.mark.parametrize("attention", ["class", "instance"])
def test_replaced_forward_that_passes_everything_on(model, single, expected, attention):
    own = type(model).forward

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None, labels=None, **kw):
        return own(self, input_ids, pixel_values, attention_mask, labels=labels, **kw)

    with prune(model, METHOD):
        logits = model(**single).logits
    if attention == "class":
        swapped(model, forward)
    else:
        model.forward = types.MethodType(forward, model)
    with prune(model, METHOD) as pruned:
        assert torch.equal(model.generate(**single, **GREEDY), expected)
        assert torch.equal(model(**single).logits, logits)
        by_place = model(single["input_ids"], single["attention_mask"], single["pixel_values"]).logits
        assert torch.equal(by_place, logits) and pruned.last.tokens_after == 9


@pytest.mark.parametrize("attention", ["class", "instance"])
def test_replaced_forward_that_loses_the_pictures(model, single, attention):
    own = type(model).forward

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None, past_key_values=None, **kw):
        return own(self, input_ids, pixel_values, attention_mask, past_key_values=past_key_values)

    if attention == "class":
        swapped(model, forward)
    else:
        model.forward = types.MethodType(forward, model)
    with prune(model, METHOD) as pruned:
        for call in (lambda: model(**single), lambda: model.generate(**single, **GREEDY)):
            with pytest.raises(UnsupportedModelError, match="mm_encoder_outputs"):
                call()
        assert pruned.last is None


def test_replaced_forward_without_any_way_through(model, single):
    own = type(model).forward

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None):
        return own(self, input_ids, pixel_values, attention_mask)

    with pytest.raises(UnsupportedModelError, match="forward takes no `mm_encoder_outputs`") as told:
        prune(swapped(model, forward), METHOD)
    assert "5.18" not in str(told.value)


# ---------------------------------------------------------------------------------------- parallel, compiled, PEFT


def test_data_parallel_is_looked_through(model, single, expected):
    with prune(nn.DataParallel(model), METHOD):
        assert torch.equal(model.generate(**single, **GREEDY), expected)
    wide = nn.DataParallel(model)
    wide.device_ids = [0, 1]
    with pytest.raises(UnsupportedModelError, match="one device"):
        prune(wide, METHOD)
    prepare(nn.DataParallel(model), METHOD, single)


def test_distributed_data_parallel(model, single, tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        labels = single["input_ids"].masked_fill(single["input_ids"] == 4, -100)
        with prune(parallel, METHOD) as pruned:
            loss = parallel(**single, labels=labels).loss
            loss.backward()
            assert pruned.last.tokens_after == 9
        encode(parallel, single, METHOD)
    finally:
        dist.destroy_process_group()


def test_compiled_models_are_looked_through(model, single, expected):
    compiled = torch.compile(model, backend="eager")
    assert prepare(compiled, METHOD, single).report.tokens_after == 9
    assert len(encode(compiled, single, METHOD).parts) == 1


def test_one_picture_on_wrapped_models(mini):
    peft = pytest.importorskip("peft")
    model, processor = copy.deepcopy(mini[0]), mini[1]
    expected = EncodedPicture(mini[0], processor, bundled_scene(), [METHOD]).ask("where is the dog?", METHOD).text
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2)
    for wrapped in (torch.compile(model, backend="eager"), peft.get_peft_model(model, lora), nn.DataParallel(model)):
        assert EncodedPicture(wrapped, processor, bundled_scene(), [METHOD]).ask("where is the dog?", METHOD).text == (
            expected
        )


@pytest.mark.parametrize("where", ["language_model", "vision_tower", "both"])
def test_peft(model, single, where):
    """Unmerged equals merged, through `prune`, `prepare` and `encode`."""
    peft = pytest.importorskip("peft")
    pattern = {"language_model": r".*language_model.*q_proj", "vision_tower": r".*vision_tower.*q_proj"}
    target = pattern.get(where, r".*q_proj")
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=target, r=2, init_lora_weights=False))
    with prune(tuned, METHOD):
        apart = tuned.generate(**single, **GREEDY)
    rows = prepare(tuned, METHOD, single).report.selections[0].rows
    encode(tuned, single, METHOD)
    with prune(tuned, METHOD | FastV(layer=1, keep=4)):
        inside = tuned.generate(**single, **GREEDY)
    merged = tuned.merge_and_unload()
    with prune(merged, METHOD):
        assert torch.equal(merged.generate(**single, **GREEDY), apart)
    assert torch.equal(prepare(merged, METHOD, single).report.selections[0].rows, rows)
    with prune(merged, METHOD | FastV(layer=1, keep=4)):
        assert torch.equal(merged.generate(**single, **GREEDY), inside)


def test_peft_on_word_embeddings(model, single, processor):
    """Embedding relevance reads the tuned words."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["embed_tokens"], r=2, init_lora_weights=False)
    tuned = peft.get_peft_model(model, lora)
    options = dict(processor=processor, relevance="embedding")
    apart = prepare(tuned, FSR(keep=9), single, **options).report.selections[0]
    merged = prepare(tuned.merge_and_unload(), FSR(keep=9), single, **options).report.selections[0]
    assert apart.rows.tolist() == merged.rows.tolist()


def test_prompt_tuning(model, single):
    """Its virtual tokens come in as embeddings, inside our own call."""
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=32, num_attention_heads=4,
                                     num_layers=2)  # fmt: skip
    tuned = peft.get_peft_model(model, config)
    expected = tuned.generate(**single, **GREEDY)
    with prune(tuned, FSR(keep=1.0, relevance="none")):
        assert torch.equal(tuned.generate(**single, **GREEDY), expected)
    with prune(tuned, METHOD) as pruned:
        tuned.generate(**single, **GREEDY)
        assert pruned.last.tokens_after == 9


# ------------------------------------------------------------------------------------------------------------ offload


@pytest.mark.parametrize("part", ["all", "vision_tower", "language_model"])
def test_offloaded_weights(mini, scene, part):
    accelerate = pytest.importorskip("accelerate")
    method = FSR(keep=16)
    for relevance in ("auto", "embedding"):
        options = dict(processor=mini[1], relevance=relevance)
        with prune(mini[0], method, **options) as pruned:
            expected = mini[0].generate(**scene, **GREEDY)
            rows = pruned.last.selections[0].rows
        off = copy.deepcopy(mini[0])
        target = off if part == "all" else getattr(off.model, part)
        accelerate.cpu_offload(target, execution_device=torch.device("cpu"))
        with prune(off, method, **options) as pruned:
            assert torch.equal(off.generate(**scene, **GREEDY), expected)
            assert torch.equal(pruned.last.selections[0].rows, rows)
        assert torch.equal(prepare(off, method, scene, **options).report.selections[0].rows, rows)


def test_weights_that_are_nowhere(mini):
    bare = copy.deepcopy(mini[0])
    bare.model.vision_tower.to("meta")
    with pytest.raises(RelevanceError, match="offloaded"):
        prune(bare, FSR(keep=16), processor=mini[1])


# ------------------------------------------------------------------------------------------------- a fine-tuned tower


@pytest.mark.parametrize("what", ["mlp", "attention", "small", "lora", "merged"])
def test_a_fine_tuned_tower_gives_the_warning(mini, what):
    model, g = copy.deepcopy(mini[0]), torch.Generator().manual_seed(0)
    if what in ("lora", "merged"):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=r".*vision_tower.*q_proj", r=2, init_lora_weights=False)
        model = peft.get_peft_model(model, config)
        model = model.merge_and_unload() if what == "merged" else model
    else:
        share = 0.05 if what == "small" else 0.5
        for name, p in model.named_parameters():
            mine = "mlp" in name if what == "mlp" else "q_proj" in name or "k_proj" in name
            if "vision_tower" in name and p.dim() > 1 and (mine or what == "small"):
                p.data += share * p.std() * torch.randn(p.shape, generator=g)
    with pytest.warns(UserWarning, match="fine-tuned"):
        prune(model, FSR(keep=16), processor=mini[1])


def test_the_original_tower_gives_none(mini):
    for dtype in (torch.float32, torch.bfloat16):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prune(copy.deepcopy(mini[0]).to(dtype), FSR(keep=16), processor=mini[1])


# ------------------------------------------------------------------------------------------------------ saving, errors


@pytest.mark.parametrize("method", [METHOD, METHOD | FastV(layer=1, keep=4)], ids=["before", "chain"])
def test_a_pruned_model_can_be_pickled(single, method):
    """Before the first run (afterwards Transformers' own hooks cannot be pickled, pruned or not)."""
    model = tiny.llava()
    file = io.BytesIO()
    with prune(model, method):
        torch.save(model, file)
        expected = model.generate(**single, **GREEDY)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded.generate(**single, **GREEDY), expected)
    loaded.__dict__["_fsr_pruner"].remove()
    assert torch.equal(loaded.generate(**single, **GREEDY), model.generate(**single, **GREEDY))


def test_qwen_without_sizes_is_one_line():
    from fsr import FeatureError

    inputs = families.prompts("qwen2.5-vl", [(1, 0)])
    del inputs["image_grid_thw"]
    with pytest.raises(FeatureError, match="processor"):
        prepare(families.model_of("qwen2.5-vl"), METHOD, inputs)
