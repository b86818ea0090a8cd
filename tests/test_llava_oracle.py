"""Pruned logits against a hand-made run of the language model: merge at full length, then drop columns."""

from __future__ import annotations

import pytest
import torch

import tiny
from fsr import FSR, prepare, prune

METHOD = FSR(keep=9, relevance="none")
PLAIN = FSR(keep=9, relevance="none", kappa=0.0)  # no merging: kept features are the originals


def by_hand(model, inputs, row, kept, features, positions):
    """Logits of one row without padding. kept: per picture of the batch (rows, features); features: its pictures."""
    ids = inputs["input_ids"][row]
    ids = ids[inputs["attention_mask"][row] == 1]
    embeds = model.get_input_embeddings()(ids).clone()
    keep = torch.ones(len(ids), dtype=torch.bool)
    places = (ids == model.config.image_token_id).nonzero().squeeze(-1)
    for i, picture in enumerate(features):
        run = places[i * tiny.TOKENS : (i + 1) * tiny.TOKENS]
        rows, values = kept[picture]
        keep[run] = False
        keep[run[rows]] = True
        embeds[run[rows]] = values
    where = keep.nonzero().squeeze(-1)
    numbers = torch.arange(len(where)) if positions == "repack" else where
    out = model.model.language_model(
        inputs_embeds=embeds[where][None],
        position_ids=numbers[None],
        attention_mask=torch.ones(1, len(where), dtype=torch.long),
        use_cache=False,
    )
    return model.lm_head(out.last_hidden_state)[0]


@pytest.mark.parametrize("positions", ["repack", "original"])
@pytest.mark.parametrize("method", [METHOD, PLAIN], ids=["merged", "plain"])
@torch.no_grad()
def test_forward_equals_dropped_columns(llava, batch, method, positions):
    features = llava.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    with prune(llava, method, positions=positions) as pruned:
        logits = llava(**batch).logits
    kept = [(s.rows, s.features) for s in pruned.last.selections]
    if method is PLAIN:
        assert all(torch.equal(v, f[r]) for (r, v), f in zip(kept, features))
    for row, pictures in enumerate([[0, 1], [2], []]):
        expected = by_hand(llava, batch, row, kept, pictures, positions)
        got = logits[row, -len(expected) :]
        # Padding makes another summation order, and shifts the numbers of repacked rows, to which RoPE is only
        # blind up to rounding.
        assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("positions", ["repack", "original"])
@torch.no_grad()
def test_unpadded_row_is_exact(llava, single, positions):
    with prune(llava, METHOD, positions=positions) as pruned:
        logits = llava(**single).logits
    kept = [(s.rows, s.features) for s in pruned.last.selections]
    assert torch.equal(logits[0], by_hand(llava, single, 0, kept, [0], positions))


@pytest.mark.parametrize("positions", ["repack", "original"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_text_equals_dropped_columns(llava, single, positions, use_cache):
    """Without cache, original positions are the packed-sequence trap: Transformers would split the prompt at gaps."""
    with prune(llava, METHOD, positions=positions) as pruned:
        out = llava.generate(**single, max_new_tokens=6, do_sample=False, use_cache=use_cache)
    selection = pruned.last.selections[0]
    inputs = {k: v.clone() for k, v in single.items()}
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        for step in range(6):
            logits = by_hand(llava, inputs, 0, [(selection.rows, selection.features)], [0], positions)
            logits[-1, llava.config.image_token_id] = -torch.inf  # as in the model's generation config
            token = logits[-1].argmax()[None, None]
            assert out[0, length + step] == token
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])


def test_masked_column_is_needed(llava, single):
    """Without the masked column the trap bites: this test fails on the day it becomes superfluous."""
    prepared = prepare(llava, METHOD, single, positions="original", use_cache=True)
    safe = prepare(llava, METHOD, single, positions="original", use_cache=False)
    options = dict(max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    right = llava.generate(**prepared, **options).logits[0]
    trapped = llava.generate(**prepared, **options, use_cache=False).logits[0]
    rescued = llava.generate(**safe, **options, use_cache=False).logits[0]
    assert (trapped - right).abs().max() > 0.05
    assert (rescued - right).abs().max() < 1e-4


@pytest.mark.parametrize("positions", ["repack", "original"])
def test_row_of_a_batch_equals_row_alone(llava, processor, batch, positions):
    alone = [
        (tiny.chat(("what colour is the dog ?", 2)), [0, 1]),
        (tiny.chat(("where is the cat ?", 1)), [2]),
        (tiny.chat(("how many are there ?", 0)), []),
    ]
    options = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with prune(llava, METHOD, positions=positions) as pruned:
        together = llava.generate(**batch, **options)
        chosen = pruned.last
        assert chosen.rows == (0, 0, 1)
        for row, (chat, pictures) in enumerate(alone):
            inputs = tiny.prompts(processor, [chat], [tiny.picture(i) for i in pictures])
            one = llava.generate(**inputs, **options)
            width = inputs["input_ids"].shape[1]
            new = batch["input_ids"].shape[1]
            assert torch.equal(one.sequences[0, width:], together.sequences[row, new:])
            for a, b in zip(one.logits, together.logits):
                assert (a[0] - b[row]).abs().max() < 2e-5 * a.abs().max()
            if pictures:
                for mine, theirs in zip(pruned.last.selections, [chosen.selections[i] for i in pictures]):
                    assert torch.equal(mine.rows, theirs.rows)


def test_right_padding_stays_right(llava, batch):
    processor = tiny.llava_processor("right")
    chats = [tiny.chat(("what colour is the dog ?", 2)), tiny.chat(("where is the cat ?", 1))]
    inputs = tiny.prompts(processor, chats, [tiny.picture(i) for i in range(3)])
    prepared = prepare(llava, METHOD, inputs, call="forward")
    mask = prepared["attention_mask"]
    # The last column of every row is the one it was: callers count from the end.
    assert mask[1, -1] == 0 and mask[0, -1] == 1
    assert int(inputs["attention_mask"][1].flip(0).argmax()) == int(mask[1].flip(0).argmax())
    left = prepare(llava, METHOD, {k: v[:2] if k != "pixel_values" else v for k, v in batch.items()}, call="forward")
    a, b = llava(**prepared).logits, llava(**left).logits
    for row in range(2):
        seen = mask[row].bool()
        assert (a[row, seen] - b[row, -int(seen.sum()) :]).abs().max() < 1e-4
