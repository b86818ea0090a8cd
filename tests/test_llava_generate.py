"""What users do with a pruned model: outputs, lengths, caches, streams, threads, labels, pipelines, known traps."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer, pipeline

import tiny
from fsr import FSR, UsageError, prepare, prune

K = 9
METHOD = FSR(keep=K, relevance="none")
GREEDY = dict(max_new_tokens=6, do_sample=False)


@pytest.fixture(scope="module")
def greedy(llava, batch):
    with prune(llava, METHOD):
        return llava.generate(**batch, **GREEDY)


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        (dict(do_sample=False), 1),
        (dict(num_beams=3), 1),
        (dict(num_beams=3, num_return_sequences=2), 2),
        (dict(do_sample=True, num_return_sequences=3), 3),
        (dict(cache_implementation="static"), 1),
        (dict(use_cache=False), 1),
    ],
)
def test_outputs_start_with_the_users_prompt(llava, batch, options, copies):
    width = batch["input_ids"].shape[1]
    with prune(llava, METHOD):
        out = llava.generate(**batch, max_new_tokens=5, return_dict_in_generate=True, **options).sequences
        assert out.shape == (3 * copies, width + 5)
        assert torch.equal(out[:, :width], batch["input_ids"].repeat_interleave(copies, 0))


def test_modes_agree_where_they_must(llava, batch, greedy):
    """Greedy text with a static cache, without cache, and with a streamer or positional ids is the same text."""
    with prune(llava, METHOD):
        chunks = [dict(prefill_chunk_size=8)] if tiny.CHUNKS_SLICE_PICTURES else []
        for options in (dict(cache_implementation="static"), dict(use_cache=False), *chunks):
            assert torch.equal(llava.generate(**batch, **GREEDY, **options), greedy), options
        rest = {k: v for k, v in batch.items() if k != "input_ids"}
        assert torch.equal(llava.generate(batch["input_ids"], **rest, **GREEDY), greedy)
        assert torch.equal(llava.generate(inputs=batch["input_ids"], **rest, **GREEDY), greedy)
        config = GenerationConfig(**GREEDY, suppress_tokens=[4])
        assert torch.equal(llava.generate(**batch, generation_config=config), greedy)


def test_prepared_arguments_give_the_same_text(llava, batch, greedy):
    prepared = prepare(llava, METHOD, batch)
    handed = len(prepared["mm_encoder_outputs"]["image"].pooler_output)
    for _ in range(2):  # beam search changes the containers it is given: a second use must not notice
        beams = llava.generate(**prepared, max_new_tokens=4, num_beams=3)
        assert len(prepared["mm_encoder_outputs"]["image"].pooler_output) == handed
        short = llava.generate(**prepared.inputs, **GREEDY)
        width = prepared.report.length_after
        assert torch.equal(short[:, :width], prepared.report.input_ids)
        assert torch.equal(short[:, width:], greedy[:, batch["input_ids"].shape[1] :])
    with prune(llava, METHOD):
        whole = llava.generate(**batch, max_new_tokens=4, num_beams=3)
    assert torch.equal(beams[:, width:], whole[:, batch["input_ids"].shape[1] :])


def test_cache_is_short(llava, batch, single):
    for inputs, pictures in ((batch, 2), (single, 1)):
        with prune(llava, METHOD) as pruned:
            out = llava.generate(**inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
        removed = pictures * (tiny.TOKENS - K)
        assert pruned.last.length_after == inputs["input_ids"].shape[1] - removed
        assert out.past_key_values.get_seq_length() == pruned.last.length_after + 4
        assert out.past_key_values.layers[0].keys.shape[2] == pruned.last.length_after + 4


def test_language_model_sees_only_the_kept_features(llava, batch):
    seen = []
    hook = llava.model.language_model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True
    )
    try:
        with prune(llava, METHOD) as pruned:
            llava.generate(**batch, max_new_tokens=1)
    finally:
        hook.remove()
    places = pruned.last.input_ids == llava.config.image_token_id
    assert torch.equal(seen[0][places], torch.cat([s.features for s in pruned.last.selections]))


def test_report(llava, batch):
    with prune(llava, METHOD) as pruned:
        assert pruned.last is None
        llava.generate(**batch, max_new_tokens=2)
    report = pruned.last
    assert [s.kept for s in report.selections] == [K, K, K] and report.rows == (0, 0, 1)
    assert (report.tokens_before, report.tokens_after) == (3 * tiny.TOKENS, 3 * K)
    assert report.positions == "repack" and report.questions is None
    assert set(report.timings) == {"vision_tower", "saliency", "text_tower", "selection", "rest", "total"}
    assert all(ms >= 0 for ms in report.timings.values())
    parts = sum(v for k, v in report.timings.items() if k != "total")
    assert abs(parts - report.timings["total"]) < 1e-6
    assert report.timings["vision_tower"] > 0 and report.timings["selection"] > 0


def test_several_turns(llava, processor):
    chat = tiny.chat(("what colour is the dog ?", 1), ("and the cat ?", 1), answers=("red",))
    inputs = tiny.prompts(processor, [chat], [tiny.picture(0), tiny.picture(1)])
    with prune(llava, METHOD) as pruned:
        out = llava.generate(**inputs, **GREEDY)
    ids = pruned.last.input_ids[0]
    text = [i for i in inputs["input_ids"][0].tolist() if i != 4]
    assert [i for i in ids.tolist() if i != 4] == text  # every word in place
    runs = "".join("v" if i == 4 else "t" for i in ids.tolist()).replace("t", " ").split()
    assert [len(r) for r in runs] == [K, K]
    assert out.shape[1] == inputs["input_ids"].shape[1] + 6


def test_text_only_prompt_passes(llava, processor):
    inputs = tiny.prompts(processor, [tiny.chat(("how many are there ?", 0))], [])
    expected = llava.generate(**inputs, **GREEDY)
    with prune(llava, METHOD) as pruned:
        assert torch.equal(llava.generate(**inputs, **GREEDY, question="how many ?"), expected)
    assert pruned.last.selections == () and pruned.last.length_after == inputs["input_ids"].shape[1]


def test_streaming_from_a_thread(llava, processor, single):
    """The usual pattern: a new thread has an empty context, so activation must live on the model."""
    with prune(llava, METHOD) as pruned:
        expected = llava.generate(**single, **GREEDY)[0, single["input_ids"].shape[1] :]
        pruned.last = None
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
        thread = Thread(target=llava.generate, kwargs={**single, **GREEDY, "streamer": streamer})
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text.split() == processor.tokenizer.decode(expected).split()
    assert pruned.last.tokens_after == K


def test_eight_threads(llava, processor):
    pictures = [tiny.picture(i) for i in range(8)]
    inputs = [tiny.prompts(processor, [tiny.chat(("where is the cat ?", 1))], [p]) for p in pictures]
    alone = [prepare(llava, METHOD, x).report.selections[0].rows.tolist() for x in inputs]
    assert len({tuple(r) for r in alone}) > 1
    with prune(llava, METHOD):
        expected = [llava.generate(**x, **GREEDY) for x in inputs]
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda x: llava.generate(**x, **GREEDY), inputs * 3))
            kept = list(pool.map(lambda x: prepare(llava, METHOD, x).report.selections[0].rows.tolist(), inputs * 3))
    assert all(torch.equal(a, b) for a, b in zip(got, expected * 3))
    assert kept == alone * 3


def test_labels_and_gradients(llava, single):
    """Scoring and training: labels lose the same columns, and gradients reach the projector."""
    model = copy.deepcopy(llava)
    labels = single["input_ids"].clone()
    labels[labels == 4] = -100
    labels[:, :3] = -100
    with prune(model, tiny.Salient(keep=K)) as pruned:
        out = model(**single, labels=labels)
        out.loss.backward()
    assert out.logits.shape[1] == pruned.last.length_after
    ids = pruned.last.input_ids
    target = ids.masked_fill(ids == 4, -100)
    target[:, :3] = -100
    loss = torch.nn.functional.cross_entropy(out.logits[0, :-1], target[0, 1:], ignore_index=-100)
    assert torch.allclose(out.loss, loss, atol=1e-6)
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert not pruned.last.notes
    assert not any(s.features.requires_grad for s in pruned.last.selections)  # a report must not hold the graph
    with prune(model, tiny.Cutting(keep=K)) as pruned:
        model(**single, labels=labels)
    assert "gradient" in pruned.last.notes[0]


def test_pipeline(llava, processor):
    messages = tiny.chat(("where is the cat ?", 0))
    messages[0]["content"].insert(0, {"type": "image", "image": tiny.picture(1)})
    pipe = pipeline("image-text-to-text", model=llava, processor=processor)
    whole = pipe(text=messages, generate_kwargs=dict(GREEDY), return_full_text=False)
    with prune(llava, METHOD) as pruned:
        short = pipe(text=messages, generate_kwargs=dict(GREEDY), return_full_text=False)
    inputs = tiny.prompts(processor, [tiny.chat(("where is the cat ?", 1))], [tiny.picture(1)])
    with prune(llava, METHOD):
        direct = llava.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert short[0]["generated_text"].split() == processor.tokenizer.decode(direct[0], skip_special_tokens=True).split()
    assert short != whole and pruned.last.tokens_after == K


# ------------------------------------------------------------------------------------------------------------- traps


@pytest.mark.parametrize("where", ["keyword", "config", "model"])
def test_length_limits_count_the_users_prompt(llava, single, where):
    width = single["input_ids"].shape[1]
    model = copy.deepcopy(llava)
    limits = dict(max_length=width + 5, min_length=width + 3, do_sample=False)
    model.generation_config.eos_token_id = list(range(5, 60))  # would end at once but for min_length
    options = limits
    if where == "config":
        options = dict(generation_config=GenerationConfig(**limits))
    elif where == "model":
        model.generation_config.update(**limits)
        options = {}
    with prune(model, METHOD) as pruned:
        out = model.generate(**single, **options)
    assert pruned.last.length_after < width
    assert out.shape[1] == width + 4  # min_length + the token that ends
    if where == "config":
        assert options["generation_config"].max_length == width + 5
    model.generation_config.eos_token_id = None
    with prune(model, METHOD):
        assert model.generate(**single, **options).shape[1] == width + 5


def test_filled_cache_needs_the_short_prompt(llava, single):
    with prune(llava, METHOD) as pruned:
        out = llava.generate(**single, **GREEDY, return_dict_in_generate=True)
        new = out.sequences[:, single["input_ids"].shape[1] :]
        tail = torch.tensor([[5, 7, 8]])
        cache = copy.deepcopy(out.past_key_values)
        wrong = torch.cat([out.sequences, tail], 1)
        with pytest.raises(UsageError, match=r"last\.input_ids"):
            llava.generate(wrong, past_key_values=cache, **GREEDY)
        with pytest.raises(UsageError, match="without past_key_values"):
            llava.generate(**single, past_key_values=cache, **GREEDY)
        right = torch.cat([pruned.last.input_ids, new, tail], 1)
        got = llava.generate(right, past_key_values=cache, **GREEDY)
    assert torch.equal(got[:, : right.shape[1]], right)
    prepared = prepare(llava, METHOD, single)
    scratch = llava.generate(
        right, mm_encoder_outputs=prepared["mm_encoder_outputs"], attention_mask=torch.ones_like(right), **GREEDY
    )
    assert torch.equal(got, scratch)


def test_empty_cache_is_welcome(llava, single):
    with prune(llava, METHOD) as pruned:
        cache = DynamicCache(config=llava.config.get_text_config())
        out = llava.generate(**single, past_key_values=cache, **GREEDY)
        assert torch.equal(out, llava.generate(**single, **GREEDY))
    assert cache.get_seq_length() == pruned.last.length_after + 5


def test_hand_written_loop(llava, batch, greedy):
    """Greedy by hand from the pruned forward equals generate; the unpruned mask is refused instead of misread."""
    with prune(llava, METHOD) as pruned, torch.no_grad():
        prepared = prepare(llava, METHOD, batch)
        mask, tokens = prepared["attention_mask"], []
        places = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        out = llava(**prepared, position_ids=places, use_cache=True)
        for _ in range(6):
            out.logits[:, -1, 4] = -torch.inf
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(token)
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            places = places[:, -1:] + 1
            cache = out.past_key_values
            out = llava(token, attention_mask=mask, past_key_values=cache, position_ids=places)
        assert torch.equal(torch.cat(tokens, 1), greedy[:, batch["input_ids"].shape[1] :])

        out = llava(**batch, use_cache=True)
        assert out.past_key_values.get_seq_length() == pruned.last.length_after
        long = torch.cat([batch["attention_mask"], torch.ones_like(token)], 1)
        with pytest.raises(UsageError, match="columns"):
            llava(token, attention_mask=long, past_key_values=out.past_key_values)


def test_chunked_prefill_is_refused_where_it_would_lose_pictures(llava, single, monkeypatch):
    import transformers.generation.utils as utils

    with prune(llava, METHOD) as pruned:
        with monkeypatch.context() as patch:
            patch.setattr(type(pruned.adapter), "chunked_prefill", False)
            with pytest.raises(UsageError, match="prefill_chunk_size"):
                llava.generate(**single, prefill_chunk_size=4, **GREEDY)
        monkeypatch.delattr(utils, "_slice_mm_encoder_output", raising=False)
        with pytest.raises(UsageError, match="prefill_chunk_size"):
            llava.generate(**single, generation_config=GenerationConfig(prefill_chunk_size=4))


def test_features_carry_no_graph(llava, single):
    """Assisted decoding copies its inputs deeply, which a graph forbids."""
    model = copy.deepcopy(llava).requires_grad_(True)
    with prune(model, METHOD):
        assisted = model.generate(**single, **GREEDY, assistant_model=copy.deepcopy(llava))
        assert torch.equal(assisted, model.generate(**single, **GREEDY))


def test_old_output_is_not_kept(llava, single):
    handed = prepare(llava, METHOD, single)["mm_encoder_outputs"]["image"]
    assert set(handed.keys()) == {"pooler_output"}


def test_inferred_mask(llava, batch):
    """Without a mask `generate` reads padding from the ids; pruning must drop the same columns."""
    model = copy.deepcopy(llava)
    model.generation_config.pad_token_id = 0
    bare = {k: v for k, v in batch.items() if k != "attention_mask"}
    with prune(model, METHOD):
        assert torch.equal(model.generate(**bare, **GREEDY), model.generate(**batch, **GREEDY))


def test_given_positions_are_gathered(llava, single):
    width = single["input_ids"].shape[1]
    places = torch.arange(width)[None]
    a = prepare(llava, METHOD, {**single, "position_ids": places + 3})
    b = prepare(llava, METHOD, single, positions="original")
    assert torch.equal(a["position_ids"], b["position_ids"] + 3) and a.report.positions == "original"
    assert "position_ids" not in prepare(llava, METHOD, {**single, "position_ids": places}, positions="repack")


@pytest.mark.parametrize("what", ["tower", "layer", "model", "wrapped"])
def test_compiled(llava, single, what):
    """Hooks vanish inside a compiled tower: encoding runs eagerly there, everything else stays compiled."""
    model = copy.deepcopy(llava)
    with prune(llava, METHOD) as reference:
        text = llava.generate(**single, max_new_tokens=1)
        logits = llava(**single).logits
    torch._dynamo.reset()
    called = model
    if what == "tower":
        model.model.vision_tower = torch.compile(model.model.vision_tower, backend="eager")
    elif what == "layer":
        for layer in model.model.vision_tower.encoder.layers:
            layer.compile(backend="eager")
    elif what == "model":
        model.compile(backend="eager")
    else:
        called = torch.compile(model, backend="eager")
    with prune(called, METHOD) as pruned:
        if what != "model":  # there `generate` would only compile the same forward once more
            assert torch.equal(called.generate(**single, max_new_tokens=1), text)
        assert (called(**single).logits - logits).abs().max() < 1e-5
    assert torch.equal(pruned.last.selections[0].rows, reference.last.selections[0].rows)
    assert "generate" not in model.__dict__
