"""Every family with K < N: equal to columns dropped by hand, rows independent of their batch, short cache, promised
positions."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import utils as generation

import families
import tiny
from fsr import FSR, UsageError, prune
from fsr.adapters import find

K = 3
OLD = not hasattr(generation, "_slice_mm_encoder_output")
RAGGED = tiny.Salient(keep=0.3)
GREEDY = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)


FEW = FSR(keep=K, relevance="none")


def axes_of(name, base, inputs):
    """Positions [3, B, L] of the whole prompt."""
    given = {n: inputs[n] for n in ("image_grid_thw", "video_grid_thw") if n in inputs}
    if "omni" in name:
        given |= {"attention_mask": inputs["attention_mask"], "second_per_grids": inputs.get("video_second_per_grid")}
    else:
        given["mm_token_type_ids"] = inputs["mm_token_type_ids"]
    return base.get_rope_index(inputs["input_ids"], **given)[0]


def by_hand(name, model, inputs, selections):
    """Logits of one unpadded row: everything merged at full length, then the columns that are not kept left out."""
    base, ids = find(model).base, inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids).clone()
    if name == "gemma3n":  # the marks around its pictures have embeddings of their own
        marks = (ids == families.OPEN) | (ids == families.CLOSE)
        embeds[marks] = base.embed_vision(input_ids=ids[marks])
    keep = torch.ones_like(ids[0], dtype=torch.bool)
    deep: dict[int, list[torch.Tensor]] = {}
    units = list(selections)
    for modality, token in (("image", families.IMAGE), ("video", families.VIDEO)):
        places = (ids[0] == token).nonzero().squeeze(-1)
        run = getattr(base, f"get_{modality}_features", None)
        while len(places):
            unit = units.pop(0)
            mine, places = places[: unit.total], places[unit.total :]
            keep[mine] = False
            keep[mine[unit.rows]] = True
            embeds[0, mine[unit.rows]] = unit.features
        if name.startswith(("qwen3-vl", "qwen3-omni")) and (ids == token).any():
            names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
            out = run(*(inputs[n] for n in names[modality]), return_dict=True)
            for layer, value in enumerate(out.deepstack_features):
                deep.setdefault(layer, []).append(torch.cat(list(value)))
    assert not units
    where = keep.nonzero().squeeze(-1)
    kwargs = dict(inputs_embeds=embeds[:, where], attention_mask=inputs["attention_mask"][:, where], use_cache=False)
    kwargs["position_ids"] = torch.arange(len(where))[None] + (name == "paligemma")
    runner = base
    if "token_type_ids" in inputs:
        kwargs["token_type_ids"] = inputs["token_type_ids"][:, where]
    if name == "gemma3n":
        known = torch.where(ids < model.config.text_config.vocab_size_per_layer_input, ids, 0)
        runner = base.language_model
        kwargs["per_layer_inputs"] = runner.get_per_layer_inputs(known[:, where])
    elif name == "gemma4":
        kwargs["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, where]
        plain = torch.where(torch.isin(ids, torch.tensor([families.IMAGE, families.VIDEO])), families.PAD, ids)[
            :, where
        ]
        words = model.get_input_embeddings()(plain)
        kwargs["per_layer_inputs"] = base.language_model.get_per_layer_inputs(plain, words)
    elif hasattr(base, "get_rope_index"):
        axes = axes_of(name, base, inputs)
        kwargs["position_ids"] = torch.cat([kwargs["position_ids"][None], axes[:, :, where]])
        runner = model.get_decoder()
    if deep:
        visual = (ids == families.IMAGE) | (ids == families.VIDEO)
        rows = keep[visual[0]]  # pictures first, then the clip, as in the prompt
        kwargs["visual_pos_masks"] = visual[:, where]
        kwargs["deepstack_visual_embeds"] = [torch.cat(parts)[rows] for parts in deep.values()]
    if name == "llama4":
        return base.language_model(**kwargs).logits
    logits = model.lm_head(runner(**kwargs).last_hidden_state)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize("name", families.FAMILIES)
@torch.no_grad()
def test_forward_equals_dropped_columns(name, feature):
    model = families.model_of(name)
    family = families.FAMILIES[name]
    for rows in [(2, families.mixed(name)[1][1])], *([] if family.mixes else [[(0, 1)]]):
        inputs = families.prompts(name, rows, seed=1)
        # Numbered as the family is at usual budgets; below a twelfth see tests/test_positions.py.
        with prune(model, FEW, positions=find(model).position_policy) as pruned:
            logits = model(**inputs).logits
        assert pruned.last.tokens_after == K * len(pruned.last.selections) < pruned.last.tokens_before
        expected = by_hand(name, model, inputs, pruned.last.selections)
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()
    feature(name, "K < N equals dropped columns")


@pytest.mark.parametrize("budget", [FEW, RAGGED], ids=["fixed", "ragged"])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_row_of_a_batch_equals_row_alone(name, budget, feature):
    model, rows = families.model_of(name), families.mixed(name)
    batch = families.prompts(name, rows)
    with prune(model, budget) as pruned:
        together = model.generate(**batch, **GREEDY)
        all_chosen = pruned.last
        for row in range(len(rows)):
            inputs = families.row_alone(name, rows, row)
            one = model.generate(**inputs, **GREEDY)
            alone, width = inputs["input_ids"].shape[1], batch["input_ids"].shape[1]
            assert torch.equal(one.sequences[0, alone:], together.sequences[row, width:])
            near = 2e-4 if name.startswith("qwen3.5") else 5e-5  # recurrent layers sum up the rounding of all columns
            for a, b in zip(one.logits, together.logits):
                assert (a[0] - b[row]).abs().max() <= near * a.abs().max()
            if sum(rows[row]):
                mine = [s for s, r in zip(all_chosen.selections, all_chosen.rows) if r == row]
                assert [s.rows.tolist() for s in mine] == [s.rows.tolist() for s in pruned.last.selections]
    kept = {s.kept for s in all_chosen.selections}
    assert (len(kept) > 1) == (budget is RAGGED and len({s.total for s in all_chosen.selections}) > 1)
    feature(name, "batched row = row alone")
    if budget is RAGGED:
        feature(name, "ragged K")
    feature(name, "several pictures, text-only rows")
    if rows[1][1]:
        feature(name, "pictures and clips together")


@pytest.mark.parametrize("name", families.FAMILIES)
def test_ragged_rows_in_every_mode(name):
    """Beams repeat features per row and static caches are sized once: both must cope with a K of each row's own."""
    model = families.model_of(name)
    batch = families.prompts(name, families.mixed(name))
    with prune(model, RAGGED):
        width = batch["input_ids"].shape[1]
        greedy = model.generate(**batch, max_new_tokens=4, do_sample=False)
        modes = [dict(cache_implementation="static"), dict(use_cache=False)]
        if OLD and name == "gemma4":  # there short prompts differ in a static cache without pruning, too
            with pytest.raises(UsageError, match=r"static cache needs transformers>=5\.23"):
                model.generate(**batch, max_new_tokens=4, **modes.pop(0))
        if OLD and name == "llama4":  # there Transformers itself fails on a static cache
            modes.pop(0)
        if OLD or name in ("gemma3", "gemma4", "gemma3n", "paligemma", "llama4"):  # blocks; features that cannot be cut
            with pytest.raises(UsageError, match="prefill_chunk_size"):
                model.generate(**batch, max_new_tokens=4, prefill_chunk_size=7)
        else:
            modes.append(dict(prefill_chunk_size=7))
        for options in modes:
            assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False, **options), greedy)
        uneven = name in (
            "internvl",
            "internvl3.5",
            "gemma3",
            "gemma3n",
            "paligemma",
            "smolvlm",
            "idefics3",
        )  # tensor containers, and row 0 keeps more than row 1
        if OLD and uneven:
            with pytest.raises(UsageError, match="different numbers"):
                model.generate(**batch, max_new_tokens=4, num_beams=2)
            return
        if name == "llama4":
            with pytest.raises(UsageError, match="does not repeat the pictures"):
                model.generate(**batch, max_new_tokens=4, num_beams=2)
            return
        beams = model.generate(**batch, max_new_tokens=4, num_beams=2, num_return_sequences=2)
        assert beams.shape == (6, width + 4)
        alone = model.generate(
            **families.row_alone(name, families.mixed(name), 1), max_new_tokens=4, num_beams=2, num_return_sequences=2
        )
        assert torch.equal(beams[2:4, width:], alone[:, -4:])


@pytest.mark.parametrize("name", families.FAMILIES)
def test_cache_is_short_and_positions_are_as_promised(name, feature):
    model, base = families.model_of(name), find(families.model_of(name)).base
    inputs = families.row_alone(name, families.mixed(name), 1)
    seen = []
    spy = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    try:
        with prune(model, FEW) as pruned:
            out = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    finally:
        spy.remove()
    removed = sum(s.total - s.kept for s in pruned.last.selections)
    after = inputs["input_ids"].shape[1] - removed
    assert removed > 0 and pruned.last.length_after == after
    assert out.past_key_values.get_seq_length() == after + 3
    prefill = seen[0]
    if hasattr(base, "get_rope_index"):
        axes = axes_of(name, base, inputs)
        visual = torch.isin(inputs["input_ids"][0], torch.tensor([families.IMAGE, families.VIDEO]))
        keep = ~visual
        places = visual.nonzero().squeeze(-1)
        for unit in pruned.last.selections:
            mine, places = places[: unit.total], places[unit.total :]
            keep[mine[unit.rows]] = True
        assert torch.equal(prefill[-3:, 0], axes[:, 0, keep])
        top = int(axes[:, 0, keep].max())
        assert seen[1][-3:].unique().tolist() == [top + 1]
    else:
        start = int(name == "paligemma")
        assert prefill[0].tolist() == list(range(start, after + start))
        assert seen[1].flatten().tolist() == [after + start]
    feature(name, "short KV cache, promised positions")
