"""What users reported and what has to go on holding, each small: inputs that lack a key or were cut, other people's
tools around a block, copies, casts, threads, memory."""

from __future__ import annotations

import copy
import gc
import threading
import warnings

import pytest
import torch
from torch import nn

import families
import tiny
from fsr import FSR, FeatureError, FSRError, UnsupportedModelError, UsageError, prune
from fsr.methods import Dart, FastV, get
from test_calls_rows import OLD, close

METHOD = FSR(keep=3, relevance="none")
GREEDY = dict(max_new_tokens=3, do_sample=False)
SOME = ["llava", "llava-next", "qwen2.5-vl", "internvl", "gemma3", "paligemma", "smolvlm"]


# --------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("name", [n for n in families.FAMILIES if "moe" not in n and not (OLD and "omni" in n)])
@torch.no_grad()
def test_every_key_left_out_in_turn(name):
    """The stock model's answer, or one line: never another answer, never a traceback where the stock model answers."""
    model, batch = families.model_of(name), families.prompts(name, [(1, 0), (1, 0)])
    for lacking in batch:
        inputs = {k: v for k, v in batch.items() if k != lacking}
        for call in (lambda i: model.generate(**i, **GREEDY), lambda i: model(**i).logits):
            try:
                with prune(model, FSR(keep=1.0, relevance="none")):
                    mine = call(inputs)
            except FSRError:
                continue
            assert torch.equal(mine, call(inputs)), lacking
            with prune(model, FSR(keep=3, relevance="none")):
                call(inputs)


@pytest.mark.parametrize("name", ["qwen2.5-omni", "qwen3-omni"])
@pytest.mark.skipif(OLD, reason="no place for encoded pictures in that release")
@torch.no_grad()
def test_omni_without_a_mask(name):
    """`generate` infers the mask before it counts positions in three dimensions; a forward counts in one."""
    model, rows = families.model_of(name), [(2, 0), (1, 0)]
    batch = families.prompts(name, rows)
    bare = {k: v for k, v in batch.items() if k != "attention_mask"}
    with prune(model, METHOD):
        assert torch.equal(model.generate(**bare, **GREEDY), model.generate(**batch, **GREEDY))
    one = families.prompts(name, [(1, 0)])
    del one["attention_mask"]
    whole = model(**one).logits
    with prune(model, FSR(keep=1.0, relevance="none")):
        assert torch.equal(model(**one).logits, whole)


@pytest.mark.parametrize("name", SOME)
def test_prompts_that_were_cut(name):
    """`max_length` through the placeholders: said before anything runs, and what to look at."""
    model, whole = families.model_of(name), families.prompts(name, [(1, 0)])
    places = (whole["input_ids"][0] == families.IMAGE).nonzero().squeeze(-1).tolist()
    first, last = places[0], places[-1]
    for cut in (slice(first + 2, None), slice(0, last), slice(0, (first + last) // 2), slice(last, None), slice(0, 2)):
        shape = whole["input_ids"].shape
        inputs = {k: v[:, cut] if v.shape == shape else v for k, v in whole.items()}
        with prune(model, METHOD) as pruned:
            for call in (lambda i: model.generate(**i, **GREEDY), lambda i: model(**i)):
                with pytest.raises(FeatureError, match=r"processor call|max_length"):
                    call(inputs)
            assert pruned.last is None


def test_a_black_picture_that_counts_as_padding():
    inputs = families.prompts("smolvlm", [(1, 0)])
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    with prune(families.model_of("smolvlm"), METHOD), pytest.raises(FeatureError, match="exact zeros"):
        families.model_of("smolvlm").generate(**inputs, **GREEDY)


@torch.no_grad()
def test_sixty_pictures_in_one_prompt():
    model, inputs = families.model_of("llava"), families.prompts("llava", [(60, 0)])
    for method in (METHOD, METHOD | FastV(layer=1, keep=2)):
        with prune(model, method) as pruned:
            model.generate(**inputs, **GREEDY)
        assert len(pruned.last.selections) == 60 and pruned.last.tokens_after == 180


@pytest.mark.parametrize("taken", [None, 2])
def test_max_new_tokens_none_beside_max_length(taken):
    """None in the call takes the model's own setting away, so `max_length` counts, less what went."""
    model, inputs = copy.deepcopy(families.model_of("llava")), families.prompts("llava", [(1, 0)])
    model.generation_config.max_new_tokens = taken
    longest = inputs["input_ids"].shape[1] + 5
    expected = model.generate(**inputs, max_length=longest, max_new_tokens=None, do_sample=False)
    for method in (METHOD, FastV(layer=1, keep=3)):
        with prune(model, method):
            got = model.generate(**inputs, max_length=longest, max_new_tokens=None, do_sample=False)
        assert got.shape == expected.shape == (1, longest)


@pytest.mark.parametrize("name", ["llava", "idefics3", "llava-onevision"])
@torch.no_grad()
def test_padding_in_front_moves_no_pivot(name):
    """DART's norm of turned keys is no L2 norm: it changes with the position at which a prompt begins."""
    model = families.model_of(name)
    for seed in range(4):
        rows = [(1, 0), (1, 0)]
        batch = families.prompts(name, rows, seed)
        shape = batch["input_ids"].shape
        moved = {k: nn.functional.pad(v, (5, 0)) if v.shape == shape else v for k, v in batch.items()}
        with prune(model, Dart(layer=1, keep=8)) as pruned:
            model(**batch)
            expected = [r.tolist() for r in pruned.last.in_llm.drops[0].rows]
            model(**moved)
            assert [r.tolist() for r in pruned.last.in_llm.drops[0].rows] == expected


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("name", ["average-pool", "prumerge", "trim", "visionzip", "vscan", "fsr"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 6e4), (torch.bfloat16, 3e38)])
def test_merged_tokens_stay_in_the_range_of_their_type(name, dtype, size):
    from test_peers import tokens

    one = tokens(3, dtype=torch.float32)
    wide = (one.features.sign() * size).to(dtype)
    for options in ({}, {"faithful": True} if name == "visionzip" else {}):
        (chosen,) = get(name, keep=7, **options)([type(one)(**{**vars(one), "features": wide})])
        assert bool(chosen.features.isfinite().all()) and chosen.features.dtype == dtype


def test_a_cast_inside_the_block(single):
    for method in (METHOD, FastV(layer=1, keep=6)):
        for kind in (torch.bfloat16, torch.float64):
            inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in single.items()}
            model, before = tiny.llava(), tiny.llava().to(kind)
            with prune(model, method):
                model.to(kind)
                got = model.generate(**inputs, **GREEDY)
            with prune(before, method):
                assert torch.equal(got, before.generate(**inputs, **GREEDY))


# --------------------------------------------------------------------------------------------------- copies and threads


def test_a_shallow_copy(llava, single):
    """It shares the modules and hooks of the model: never half pruned, and free when the block is over."""
    model = copy.deepcopy(llava)
    full = model.generate(**single, **GREEDY)
    before = copy.copy(model)
    with prune(model, METHOD):
        expected = model.generate(**single, **GREEDY)
        twin = copy.copy(model)
        assert torch.equal(twin.generate(**single, **GREEDY), expected)
        with pytest.raises(UsageError, match="already"):
            prune(twin, METHOD).apply()
        with pytest.raises(UsageError, match="deepcopy"):
            before(**single)
    for copied in (before, twin):
        assert torch.equal(copied.generate(**single, **GREEDY), full)
        with prune(copied, METHOD) as pruned:
            assert torch.equal(copied.generate(**single, **GREEDY), expected) and pruned.last.tokens_after == 3
        assert "generate" not in copied.__dict__ and "_fsr_pruner" not in copied.__dict__
    assert torch.equal(model.generate(**single, **GREEDY), full)


def test_taken_off_while_others_generate(llava, single):
    """Calls under way go on or are refused; later ones are the model's own."""
    for method in (METHOD, METHOD | FastV(layer=1, keep=2)):
        model, odd = copy.deepcopy(llava), []
        full = model.generate(**single, **GREEDY)
        begun = threading.Event()

        def work(model=model, odd=odd, begun=begun):
            for _ in range(3):
                try:
                    begun.set()
                    model.generate(**single, **GREEDY)
                except (FSRError, RuntimeError) as error:
                    odd.append(error)

        pruner = prune(model, method).apply()
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait()
        pruner.remove()
        for thread in threads:
            thread.join()
        assert torch.equal(model.generate(**single, **GREEDY), full)
        if method is METHOD:
            assert not odd


def test_sixty_blocks_leave_nothing(llava, single):
    model = copy.deepcopy(llava)
    model.generate(**single, **GREEDY)

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before, kinds = hooks(), None
    for i in range(60):
        method = METHOD if i % 2 else METHOD | FastV(layer=1, keep=2)
        with prune(model, method):
            model(**single)
        if i in (20, 59):
            gc.collect()
            held = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
            assert kinds is None or held <= kinds + 20
            kinds = held
    assert hooks() == before


# ------------------------------------------------------------------------------------------------- other people's tools


def test_an_error_of_a_hook_of_ones_own_comes_out_as_it_is(llava, single):
    model = copy.deepcopy(llava)

    def mine(*_):
        raise ValueError("mine")

    model.model.vision_tower.register_forward_hook(mine)
    with prune(model, METHOD), pytest.raises(ValueError, match=r"^mine$"):
        model.generate(**single, **GREEDY)


@torch.no_grad()
def test_a_language_model_compiled_inside_the_block(single):
    """One that ran before, and was compiled without hooks: right, or an error, never unpruned."""
    model = tiny.llava(num_hidden_layers=4)
    part = model.model.language_model
    compiled = torch.compile(part, backend="eager")
    method = FastV(layer=2, keep=6)
    with prune(model, method):
        expected = model(**single).logits
    model.model.language_model = compiled
    model(**single)
    model.model.language_model = part
    with prune(model, method) as pruned, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.model.language_model = compiled
        try:
            got = model(**single).logits
        except UnsupportedModelError:
            assert pruned.last is None
        else:
            assert close(got, expected)


@pytest.mark.parametrize("kind", ["ia3", "loha", "words", "two"])
@torch.no_grad()
def test_adapters_of_every_kind(llava, single, kind):
    """Merged and unmerged give the same; adapters may be switched, and put on, inside the block."""
    peft = pytest.importorskip("peft")
    lora = dict(target_modules=r".*language_model.*q_proj", r=2, init_lora_weights=False)
    configs = {
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"],
                                      init_ia3_weights=False),
        "loha": lambda: peft.LoHaConfig(target_modules=["q_proj"], r=2, init_weights=False),
        "words": lambda: peft.LoraConfig(**lora, modules_to_save=["embed_tokens"]),
    }  # fmt: skip
    model = copy.deepcopy(llava)
    if kind != "two":
        tuned = peft.get_peft_model(model, configs[kind]())
        for method in (METHOD, FastV(layer=1, keep=6)):
            with prune(tuned, method):
                apart = tuned(**single).logits
            merged = copy.deepcopy(tuned).merge_and_unload()
            with prune(merged, method):
                assert close(merged(**single).logits, apart)
        return
    with prune(llava, METHOD):
        plain = llava(**single).logits
    with prune(model, METHOD) as pruned:
        tuned = peft.get_peft_model(model, peft.LoraConfig(**lora), "one")
        tuned.add_adapter("two", peft.LoraConfig(**lora))
        two, one = (tuned.set_adapter(name) or tuned(**single).logits for name in ("two", "one"))
        assert pruned.last.tokens_after == 3 and not close(one, two)
        with tuned.disable_adapter():
            assert close(tuned(**single).logits, plain)


@pytest.mark.parametrize("where", ["model.vision_tower", "model.language_model", ""])
def test_weights_on_disk(llava, single, tmp_path, where):
    """`device_map={...: "disk"}`, as large models are loaded."""
    pytest.importorskip("accelerate")
    llava.save_pretrained(tmp_path / "model")
    parts = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
    places = {p: "disk" if p == where else "cpu" for p in parts} if where else {"": "disk"}
    off = type(llava).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "off").eval()
    off.generation_config.suppress_tokens = llava.generation_config.suppress_tokens
    processor = tiny.llava_processor()
    for method, options in (
        (METHOD, {}),
        (FastV(layer=1, keep=6), {}),
        (FSR(keep=6), dict(relevance="embedding", processor=processor)),
        (FSR(keep=6), dict(relevance="first-layer", processor=processor)),
    ):
        with prune(llava, method, **options):
            expected = llava.generate(**single, **GREEDY)
        with prune(off, method, **options):
            assert torch.equal(off.generate(**single, **GREEDY), expected)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepared(llava, single, precision):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    try:
        accelerator = accelerate.Accelerator(mixed_precision=precision, cpu=True)
        model = accelerator.prepare(copy.deepcopy(llava))
        with prune(model, METHOD) as pruned:
            model(**single, labels=single["input_ids"]).loss.backward()
            assert pruned.last.tokens_after == 3
        with prune(accelerator.unwrap_model(model), METHOD | FastV(layer=1, keep=2)) as pruned:
            model.generate(**single, **GREEDY)
            assert pruned.last.in_llm.drops
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
