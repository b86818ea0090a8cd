"""Rows and columns of a shortened batch: padding on both sides, positions without a mask, packed prompts, and the map
from old columns to new ones.

Callers count from the end (log-probabilities of a completion), so what stands behind a row's last picture must stay as
far from the end as it was.
"""

from __future__ import annotations

import pytest
import torch

import families
import tiny
from fsr import FSR, UnsupportedModelError, UsageError, prepare, prune
from fsr.adapters import find
from fsr.methods import FastV

METHOD = FSR(keep=3, relevance="none")
COMPLETIONS = [[20, 21, 22, 23, 24], [25, 26]]
# Releases before 5.23: Qwen-Omni has no place for encoded pictures there, and PaliGemma reads packed prompts as one.
OLD = not tiny.CHUNKS_SLICE_PICTURES
# One of each kind; the fuzzer (test_calls_fuzz.py) draws from all.
NAMES = [n for n in families.FAMILIES if "moe" not in n and n not in ("glm46v", "pixtral", "idefics3", "internvl3.5")]
NAMES = [n for n in NAMES if not (OLD and "omni" in n)]
# Recurrent layers carry their state over from one packed prompt to the next, with or without pruning.
PACKABLE = [n for n in NAMES if not n.startswith("qwen3.5") and "omni" not in n and not (OLD and n == "paligemma")]


FEW = FSR(keep=3, relevance="none")


def with_completions(name, rows, completions=COMPLETIONS):
    """Prompts padded on the left, completions on the right: what every RL trainer makes."""
    inputs, width = families.prompts(name, rows), max(map(len, completions))
    ids = torch.tensor([c + [families.PAD] * (width - len(c)) for c in completions])
    mask = torch.tensor([[1] * len(c) + [0] * (width - len(c)) for c in completions])
    return extended(inputs, ids, mask)


def extended(inputs, ids, mask):
    more = {"input_ids": ids, "attention_mask": mask}
    out = dict(inputs)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            out[key] = torch.cat([inputs[key], more.get(key, torch.zeros_like(ids))], dim=1)
    return out


def rows_of(name, rows, completions=COMPLETIONS):
    """The same rows one by one, without any padding."""
    for i, completion in enumerate(completions):
        ids = torch.tensor([completion])
        yield extended(families.row_alone(name, rows, i), ids, torch.ones_like(ids))


def close(a, b):
    return a.shape == b.shape and float((a - b).abs().max()) <= 5e-5 * float(b.abs().max())


def fast(name):
    """A drop inside the language model, or None where the family allows none."""
    try:
        prune(families.model_of(name), FastV(layer=1, keep=2))
    except UnsupportedModelError:
        return None
    return None if name == "gemma3" else FastV(layer=1, keep=2)  # its sliding windows count columns


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padding_on_both_sides(name):
    model, rows = families.model_of(name), [(1, 0), (1, 0)]
    batch = with_completions(name, rows)
    for method in [FEW] + [m for m in [fast(name), fast(name) and FEW | fast(name)] if m]:
        with prune(model, method):
            tail = model(**batch).logits[:, -6:-1]
            for i, (alone, completion) in enumerate(zip(rows_of(name, rows), COMPLETIONS)):
                n = len(completion)
                expected = model(**alone).logits[:, -n - 1 : -1]
                assert close(tail[i : i + 1, :n], expected), (i, method)
    prepared = prepare(model, FEW, batch, call="forward")
    with prune(model, FEW):
        assert torch.equal(model(**prepared.inputs).logits, model(**batch).logits)


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "gemma3"])
@torch.no_grad()
def test_trailing_padding_alone(name):
    """One row that ends in padding (a slice of a padded batch), and rows that all do."""
    model, rows = families.model_of(name), [(1, 0), (1, 0)]
    short = [[20, 21], [25]]
    for method in [METHOD] + [m for m in [fast(name)] if m]:
        with prune(model, method):
            for completions in (short, [[20, 21, 22, 23, 24], [25]]):
                padded = with_completions(name, rows, completions)
                width = padded["input_ids"].shape[1]
                padded = extended(padded, *(torch.zeros(2, 2, dtype=torch.long),) * 2)
                logits = model(**padded).logits
                for i, alone in enumerate(rows_of(name, rows, completions)):
                    n = len(completions[i])
                    behind = padded["input_ids"].shape[1] - width + max(map(len, completions)) - n
                    mine = logits[i : i + 1, logits.shape[1] - behind - n : logits.shape[1] - behind]
                    assert close(mine, model(**alone).logits[:, -n:])


@torch.no_grad()
def test_rows_that_lose_different_numbers_keep_their_tails():
    """Right-padded rows with two pictures, one and none: counted from the end, every completion stays in place."""
    name, rows = "llava", [(2, 0), (1, 0), (0, 0)]
    model, batch = families.model_of(name), families.prompts(name, rows, side="right")
    ids = batch["input_ids"]
    with prune(model, METHOD) as pruned:
        logits = model(**batch).logits
        report = pruned.last
        for i in range(3):
            alone = families.row_alone(name, rows, i)
            behind = int((ids[i] == families.PAD).sum())
            end = logits.shape[1] - behind
            assert close(logits[i : i + 1, end - 3 : end], model(**alone).logits[:, -3:])
    assert torch.equal(report.input_ids[:, -1], ids[:, -1])


@torch.no_grad()
def test_report_maps_columns():
    model, batch = families.model_of("llava"), with_completions("llava", [(1, 0), (2, 0)])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with prune(model, METHOD) as pruned:
        out = model(**batch, labels=labels)
        report = pruned.last
        assert report.columns.shape == report.input_ids.shape == report.attention_mask.shape == report.labels.shape
        there = report.columns >= 0
        old = report.columns.clamp_min(0)
        assert torch.equal(report.input_ids[there], batch["input_ids"].gather(1, old)[there])
        assert torch.equal(report.attention_mask, batch["attention_mask"].gather(1, old) * there)
        assert torch.equal(report.labels, report.shorten(labels, fill=-100))
        weights = torch.randn(labels.shape)
        assert torch.equal(report.shorten(weights), weights.gather(1, old).masked_fill(~there, 0))
        loss = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), report.labels[:, 1:].flatten(), ignore_index=-100
        )
        assert torch.allclose(loss, out.loss, atol=1e-5)
        model(**batch)
        assert pruned.last.labels is None
        with pytest.raises(UsageError, match="columns"):
            pruned.last.shorten(labels[:, 1:])
        model.generate(**batch, max_new_tokens=1, use_cache=False)
        assert torch.equal(pruned.last.shorten(batch["input_ids"]), pruned.last.input_ids)
        assert torch.equal(pruned.last.shorten(batch["attention_mask"]), pruned.last.attention_mask)


# ------------------------------------------------------------------------------------------ positions without a mask


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", [n for n in NAMES if "omni" not in n])  # their positions take other arguments
@torch.no_grad()
def test_positions_without_a_mask(name, cached):
    """Positions with gaps and no mask would be read as several packed prompts."""
    model = families.model_of(name)
    full = families.prompts(name, [(1, 0)])
    length = full["input_ids"].shape[1]
    bare = {k: v for k, v in full.items() if k != "attention_mask"}
    given = [torch.arange(length)[None]]
    if three_dimensional(name):
        axes = families_axes(model, full)
        given = [axes, torch.cat([torch.arange(length)[None, None], axes])]
    for places in given:
        for options in ({}, {"positions": "original"}, {"positions": "repack"}):
            with prune(model, FEW, **options):
                with_mask = model(**full, position_ids=places, use_cache=cached).logits
                assert close(model(**bare, position_ids=places, use_cache=cached).logits, with_mask)
    prepared = prepare(model, FEW, {**bare, "position_ids": given[-1]}, call="forward")
    assert prepared["attention_mask"].shape == prepared["input_ids"].shape


def three_dimensional(name):
    return hasattr(find(families.model_of(name)).base, "rope_deltas")


def families_axes(model, inputs):
    grids = {n: inputs[n] for n in ("image_grid_thw", "video_grid_thw") if n in inputs}
    axes, _ = model.model.get_rope_index(inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], **grids)
    return axes


def packed(name):
    """Two rows flattened into one, positions starting again, and the two rows."""
    model, rows = families.model_of(name), [(1, 0), (1, 0)]
    parts = [families.row_alone(name, rows, i) for i in range(2)]
    both = {}
    for key, value in parts[0].items():
        if key == "attention_mask":
            continue
        rows_first = value.shape[:2] != parts[0]["input_ids"].shape and not (key == "pixel_values" and value.dim() == 5)
        dim = 0 if rows_first else 1
        both[key] = torch.cat([value, parts[1][key]], dim)
    if name == "llava-onevision":
        both["batch_num_images"] = torch.tensor([1, 1])
    if name in ("llava-next", "llava-next-video", "llava-onevision"):
        both["pixel_values"] = torch.cat([p["pixel_values"] for p in parts])
    lengths = [p["input_ids"].shape[1] for p in parts]
    if three_dimensional(name):
        axes = torch.cat([families_axes(model, p) for p in parts], -1)
        both["position_ids"] = torch.cat([torch.cat([torch.arange(n) for n in lengths])[None, None], axes])
    else:
        both["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    return both, parts


@pytest.mark.parametrize("name", PACKABLE)
@torch.no_grad()
def test_packed_prompts(name):
    """Each of two packed prompts gives what it gives alone; what cannot be right says so."""
    model = families.model_of(name)
    both, parts = packed(name)
    # Packed 1-D prompts are numbered anew at any budget; alone they are only when told so.
    with prune(model, FEW, positions="auto" if three_dimensional(name) else "repack") as pruned:
        alone = [model(**p, use_cache=False).logits for p in parts]
        together = model(**both, use_cache=False).logits
        n = alone[0].shape[1]
        assert close(together[:, :n], alone[0]) and close(together[:, n:], alone[1])
        assert len(pruned.last.selections) == 2
        prepared = prepare(model, FEW, both, call="forward")
        assert "attention_mask" not in prepared
    with prune(model, FEW, positions="repack"):
        together = model(**both, use_cache=False).logits
        alone = [model(**p, use_cache=False).logits for p in parts]
        assert close(together[:, :n], alone[0]) and close(together[:, n:], alone[1])
        if not three_dimensional(name):
            with pytest.raises(UsageError, match="packed"):
                model.generate(**both, max_new_tokens=2)
    if fast(name):
        with prune(model, fast(name)), pytest.raises(UsageError, match="packed"):
            model(**both, use_cache=False)


def test_packed_questions_are_refused(llava, processor):
    """A row has one question: two packed prompts have two."""
    parts = [tiny.prompts(processor, [tiny.chat((t, 1))], [tiny.picture(0)]) for t in ("where is the cat ?", "what ?")]
    both = {k: torch.cat([p[k] for p in parts], 0 if k == "pixel_values" else 1) for k in ("input_ids", "pixel_values")}
    both["position_ids"] = torch.cat([torch.arange(p["input_ids"].shape[1]) for p in parts])[None]

    class Norm:
        layer = -2

        def __call__(self, patches, question):
            return patches.float().norm(dim=-1)

    with prune(llava, FSR(keep=4), relevance=Norm(), processor=processor), pytest.raises(UsageError, match="packed"):
        llava(**both, use_cache=False)


@torch.no_grad()
def test_cumulative_lengths_follow():
    """Flash-attention's own description of packed rows is shortened with them, or refused."""
    both, parts = packed("llava")
    model, lengths = families.model_of("llava"), [p["input_ids"].shape[1] for p in parts]
    ends = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
    extra = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    prepared = prepare(model, METHOD, {**both, **extra}, call="forward")
    short = [prepare(model, METHOD, p, call="forward")["input_ids"].shape[1] for p in parts]
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert prepared[name].tolist() == [0, short[0], sum(short)] and prepared[name].dtype == torch.int32
    assert prepared["max_length_q"] == prepared["max_length_k"] == max(short)
    batch = families.prompts("llava", [(1, 0), (1, 0)])
    with pytest.raises(UsageError, match="cu_seq_lens"):
        prepare(model, METHOD, {**batch, **extra}, call="forward")


@torch.no_grad()
def test_one_row_of_positions_serves_the_batch():
    """`position_ids` [1, L] for several rows, as Transformers broadcasts them."""
    model, batch = families.model_of("llava"), families.prompts("llava", [(1, 0), (1, 0)], side="right")
    places = torch.arange(batch["input_ids"].shape[1])[None]
    with prune(model, METHOD):
        one = model(**batch, position_ids=places).logits
        assert torch.equal(one, model(**batch, position_ids=places.expand(2, -1)).logits)


@pytest.mark.parametrize("mask", [torch.float32, torch.bool, torch.int32, torch.uint8, torch.float16])
@torch.no_grad()
def test_masks_of_every_type(mask):
    model, batch = families.model_of("llava"), with_completions("llava", [(1, 0), (1, 0)])
    with prune(model, METHOD):
        expected = model(**batch).logits
        got = model(**{**batch, "attention_mask": batch["attention_mask"].to(mask)}).logits
        assert close(got[0], expected[0]) and close(got[1, :-3], expected[1, :-3])
        for wrong in (batch["attention_mask"][0], torch.ones(2, 1, 4, 4), {"full_attention": None}):
            with pytest.raises(UsageError, match="attention_mask"):
                model(**{**batch, "attention_mask": wrong})


@pytest.mark.parametrize("way", ["keyword", "config", "eos in the call"])
@torch.no_grad()
def test_padding_by_the_pad_id_of_the_call(way):
    """Without a mask `generate` infers padding from the pad id that the call gives, not the model's."""
    import copy

    from transformers import GenerationConfig

    model = copy.deepcopy(families.model_of("llava"))
    batch = families.prompts("llava", [(2, 0), (1, 0)])
    bare = {k: v for k, v in batch.items() if k != "attention_mask"}
    options = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    if way == "eos in the call":  # padding that also ends sentences is no padding
        model.generation_config.pad_token_id = 0
        options["eos_token_id"] = 0
        batch = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
        given = {}
    else:
        model.generation_config.pad_token_id = None
        given = {"pad_token_id": 0} if way == "keyword" else {"generation_config": GenerationConfig(pad_token_id=0)}
    with prune(model, METHOD):
        got = model.generate(**bare, **options, **given).logits
        expected = model.generate(**batch, **options).logits
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, expected))
