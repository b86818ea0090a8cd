"""The paper's LLaVA-NeXT, the generic adapter, relevance where no text tower pairs, and input that does not fit."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from PIL import Image

import families
import tiny
from fsr import FSR, ClipTwin, FeatureError, RelevanceError, UnsupportedModelError, UsageError, prepare, prune
from fsr.adapters import find
from fsr.adapters.gemma3n import mean_over_cells
from fsr.adapters.internvl import mosaic
from fsr.adapters.llava_next import five_tiles
from fsr.adapters.smolvlm import tile_grids
from fsr.methods import CDPruner, DivPrune, PruMerge, UniformGrid, VisionZip, VisPruner, VScan
from fsr.methods.base import Signal

GREEDY = dict(max_new_tokens=3, do_sample=False)


@dataclass(frozen=True)
class Relevant(tiny.Salient):
    """A method that reads nothing but relevance and has no option to do without."""

    name: ClassVar[str] = "test-relevant"
    needs: ClassVar[frozenset[Signal]] = frozenset({"relevance"})


@pytest.fixture
def next_processor():
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    tile = {"height": families.SIDE, "width": families.SIDE}
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": families.SIDE}, crop_size=tile, image_grid_pinpoints=families.PINPOINTS
    )
    return LlavaNextProcessor(
        image_processor=images, tokenizer=tiny.word_tokenizer(), patch_size=families.PATCH,
        vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip


def test_llava_next_as_in_the_papers(next_processor, feature):
    """Five tiles, no newline, budgets per tile and over the picture; and the stock model is back afterwards."""
    model = copy.deepcopy(families.model_of("llava-next"))
    model.config.image_token_id = tiny.SPECIAL.index("<image>")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    picture, text = Image.new("RGB", (90, 50), "red"), "<image> what colour is the dog ?"
    stock = next_processor(images=picture, text=text, return_tensors="pt")
    unpruned = model.generate(**stock, **GREEDY)
    with five_tiles(model, next_processor) as processor:
        inputs = processor(images=picture, text=text, return_tensors="pt")
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 5 * 16
        assert inputs["pixel_values"].shape[:2] == (1, 5)
        expected = model(**inputs).logits
        with prune(model, FSR(keep=80, relevance="none")):
            assert torch.equal(model(**inputs).logits, expected)
        for method, kept in (
            (FSR(keep=4, per="tile", relevance="none"), [4] * 5),
            (FSR(keep=20, relevance="none"), None),
        ):
            with prune(model, method) as pruned:
                model.generate(**inputs, **GREEDY)
            (selection,) = pruned.last.selections
            assert (selection.kept, selection.total, selection.geometry.grid) == (20, 80, None)
            per_tile = torch.bincount(selection.geometry.tile[selection.rows], minlength=5).tolist()
            assert kept is None or per_tile == kept
            (line,) = pruned.last.budgets
            assert line == f"picture 0: 20 of 80 tokens; by tile (5): {', '.join(map(str, per_tile))}"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and set(before) == set(
        model.state_dict()
    )
    assert torch.equal(
        model.generate(**next_processor(images=picture, text=text, return_tensors="pt"), **GREEDY), unpruned
    )
    feature("llava-next", "five tiles of 576, no newline; budget per tile or over the picture")
    with pytest.raises(UsageError, match="LLaVA-NeXT"), five_tiles(families.model_of("llava"), next_processor):
        pass


@pytest.mark.parametrize(
    "name",
    [n for n, f in families.FAMILIES.items() if not find(families.model_of(n)).paired_text_tower],
)
def test_no_text_tower_means_no_relevance_and_says_so(name, feature):
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    auto = prepare(model, FSR(keep=3), inputs)
    none = prepare(model, FSR(keep=3, alpha=0.0), inputs)
    assert "without relevance (alpha = 0)" in auto.report.notes[0]
    assert [s.rows.tolist() for s in auto.report.selections] == [s.rows.tolist() for s in none.report.selections]
    with pytest.raises(RelevanceError, match="cannot do without relevance"):
        prepare(model, Relevant(keep=3), inputs)
    tokenizer = tiny.word_tokenizer()
    by_words = prepare(model, FSR(keep=3), inputs, "red car", relevance="embedding", processor=tokenizer)
    (selection,) = by_words.report.selections
    ids = torch.tensor(tokenizer("red car", add_special_tokens=False).input_ids)
    words = torch.nn.functional.normalize(model.get_input_embeddings().weight[ids], dim=-1)
    unit = find(model).encode(inputs, frozenset())[0].units[0]
    cosine = torch.nn.functional.normalize(unit.features, dim=-1) @ words.T
    assert torch.allclose(selection.relevance, cosine.mean(-1), atol=1e-5)
    assert not any("without relevance" in note for note in by_words.report.notes)
    with pytest.raises(RelevanceError, match="processor"):
        prepare(model, FSR(keep=3), inputs, "red car", relevance="embedding")
    feature(name, "relevance: none by default, embedding as an option")


def test_a_convolutional_tower_has_no_saliency():
    """Gemma 3n with a tower that does not attend: one line for FSR, and what that line advises works."""
    model, inputs = copy.deepcopy(families.model_of("gemma3n")), families.prompts("gemma3n", [(1, 0)])
    model.model.vision_tower.blocks = torch.nn.ModuleList()
    before = set(model.__dict__)
    with pytest.raises(UnsupportedModelError, match="no saliency to read"):
        prepare(model, FSR(keep=3), inputs)
    for plain in (DivPrune(keep=3), UniformGrid(keep=3)):
        assert [s.kept for s in prepare(model, plain, inputs).report.selections] == [3]
    report = prepare(
        model, CDPruner(keep=3), inputs, "red car", relevance="first-layer", processor=tiny.word_tokenizer()
    ).report
    assert [s.kept for s in report.selections] == [3] and report.selections[0].relevance is not None
    assert set(model.__dict__) == before


@torch.no_grad()
def test_early_layers_of_gemma3n_are_refused_and_the_others_read():
    """VScan reads a shallow layer, which attends to a coarser map; VisPruner the tower's output."""
    model, inputs = families.model_of("gemma3n"), families.prompts("gemma3n", [(1, 0)])
    with pytest.raises(UnsupportedModelError, match="no shallow_saliency to read"):
        prepare(model, VScan(keep=3), inputs)
    for method in (VisPruner(keep=3), VisionZip(keep=3), PruMerge(keep=3)):
        assert prepare(model, method, inputs).report.tokens_after == 3


def test_scores_of_one_raster_go_to_another_by_area():
    """Gemma 3n: 24 x 24 cells attend, 16 x 16 tokens are made of them, each of one and a half."""
    scores = torch.rand(2, 576)
    fine = torch.nn.functional.interpolate(scores.view(2, 1, 24, 24), size=(48, 48), mode="nearest")
    expected = torch.nn.functional.avg_pool2d(fine, 3).flatten(1)
    assert torch.allclose(mean_over_cells(scores, (768, 768), (16, 16)), expected, atol=1e-6)
    keys = scores[..., None] * torch.arange(5)
    assert torch.allclose(mean_over_cells(keys, (768, 768), (16, 16))[..., 3], 3 * expected, atol=1e-5)
    wide = mean_over_cells(torch.arange(8.0)[None], (64, 128), (1, 2))
    assert wide.tolist() == [[2.5, 4.5]]
    with pytest.raises(UnsupportedModelError, match="no raster of 64 x 64"):
        mean_over_cells(torch.rand(1, 7), (64, 64), (2, 2))


@torch.no_grad()
def test_merged_features_pass_the_last_projection_of_llama4():
    """Transformers projects what is handed over: the language model sees what the method made."""
    model, inputs = families.model_of("llama4"), families.prompts("llama4", [(2, 0)], seed=1)
    prepared = prepare(model, FSR(keep=5, relevance="none", max_focus=0.2), inputs)
    seen = model.multi_modal_projector(prepared["mm_encoder_outputs"]["image"].last_hidden_state).flatten(0, -2)
    wanted = torch.cat([s.features for s in prepared.report.selections])
    merged = [int((s.merged_into >= 0).sum()) for s in prepared.report.selections]
    assert sum(merged) > 0 and torch.allclose(seen, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "llava-next", "llava-next-video"])
@torch.no_grad()
def test_clip_relevance_goes_through_the_models_own_packing(name, feature):
    """Scores of the patches of each tile, packed; pooled frames are scored by their mean state; newlines have none."""
    from transformers import CLIPConfig, CLIPModel

    model = families.model_of(name)
    text = tiny.clip().config.text_config.to_dict()
    vision = families.clip_vision(projection_dim=16).to_dict()
    clip = tiny.sharpen(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)), 2)
    clip.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    twin = ClipTwin.from_clip(clip, tiny.word_tokenizer(ends=True), sign=-1)
    rows = families.mixed(name)
    inputs = families.prompts(name, rows)
    report = prepare(model, FSR(keep=3), inputs, "red car", relevance=twin).report
    tiles = inputs["pixel_values"]
    first = tiles[:1] if tiles.dim() == 4 else tiles[0, :1]
    state = model.model.vision_tower(first, output_hidden_states=True).hidden_states[-2][0, 1:]
    assert torch.allclose(report.selections[0].relevance[:16], twin(state, "red car"), atol=1e-5)
    for selection in report.selections:
        structural = selection.geometry.tile < 0
        assert selection.relevance[structural].isnan().all() and selection.relevance[~structural].isfinite().all()
    if families.FAMILIES[name].clip:
        states = model.model.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states[-2]
        pooled = model.model.vision_resampler(states[:, 1:]).flatten(0, 1)
        assert torch.allclose(report.selections[-1].relevance, twin(pooled, "red car"), atol=1e-5)
    feature(name, "relevance by the paired text tower")


def test_paired_families_still_insist_on_their_text_tower():
    for name in ("llava", "llava-next", "llava-next-video", "llava-onevision"):
        with pytest.raises(RelevanceError, match="no text tower is known"):
            prepare(families.model_of(name), FSR(keep=3), families.prompts(name, [(1, 0)]), "red car")


def test_fewer_tokens_than_the_budget_are_left_whole():
    """GRIDS and tiles give pictures of different sizes: the small one stays as it is."""
    for name, keep in (("qwen2.5-vl", 13), ("internvl", 5)):
        model, inputs = families.model_of(name), families.prompts(name, [(2, 0)])
        report = prepare(model, FSR(keep=keep), inputs).report
        small = min(report.selections, key=lambda s: s.total)
        large = max(report.selections, key=lambda s: s.total)
        assert (small.kept, large.kept) == (small.total, keep)
        assert "nothing pruned" in small.notes[0]


# ------------------------------------------------------------------------------------------------------------------
# generic


def vip_llava():
    from transformers import VipLlavaConfig

    config = VipLlavaConfig(
        vision_config=families.clip_vision(), text_config=families.text(), image_token_id=families.IMAGE,
        vision_feature_layers=[-2, -1],
    )  # fmt: skip
    return families.made("VipLlavaForConditionalGeneration", config, "sdpa")


def test_generic_adapter_announces_itself(feature):
    model = vip_llava()
    assert type(find(model)).__name__ == "GenericAdapter"
    inputs = {
        "pixel_values": families.noise(0, 2, 3, families.SIDE, families.SIDE),
        "input_ids": torch.tensor([[1, *[families.IMAGE] * 16, 5, *[families.IMAGE] * 16, 6, 7]]),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = model.generate(**inputs, **GREEDY)
    with prune(model, FSR(keep=99)) as pruned:
        assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    with prune(model, FSR(keep=5)) as pruned:
        model.generate(**inputs, **GREEDY)
    assert pruned.last.length_after == 4 + 2 * 5
    assert "generic adapter" in pruned.last.notes[0] and "without relevance" in pruned.last.notes[1]
    feature("anything else (generic, by structure)", "K = N identity (sdpa)")


def test_unsupported_models_are_refused_by_name():
    from transformers import LlamaForCausalLM

    with pytest.raises(UnsupportedModelError, match="no adapter for model type 'llama'") as refused:
        prune(LlamaForCausalLM(families.text()), FSR(keep=3))
    line = str(refused.value)
    assert "takes no features from outside" in line and "docs/models.md" in line and len(line) < 260


# ---------------------------------------------------------------------------------------------------------------- bad
# input


@pytest.mark.parametrize("name", families.FAMILIES)
def test_input_that_does_not_fit_is_one_clear_error(name, feature):
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    before = set(model.__dict__)
    shapes = {
        "flat pixels": {"pixel_values": inputs["pixel_values"].flatten(-2)[..., :7]},
        "prompt of another processor": {n: inputs[n][:, :-9] for n in ("input_ids", "attention_mask")},
    }
    for what, wrong in shapes.items():
        bad = {**inputs, **wrong}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in bad:
                bad[key] = bad[key][:, : bad["input_ids"].shape[1]]
        with prune(model, FSR(keep=3, relevance="none")) as pruned:
            with pytest.raises(FeatureError, match="processor"):
                model.generate(**bad, **GREEDY)
            assert pruned.last is None, what
    assert set(model.__dict__) == before
    feature(name, "input that does not fit: one error")


def test_qwen_without_token_types_is_an_error():
    inputs = families.prompts("qwen2.5-vl", [(1, 0)])
    del inputs["mm_token_type_ids"]
    with pytest.raises(UsageError, match="mm_token_type_ids"):
        prepare(families.model_of("qwen2.5-vl"), FSR(keep=3), inputs)


def test_tiles_are_read_off_the_prompt():
    f, g, i, n = families.OPEN, families.LABELS, families.IMAGE, families.BREAK
    crop = lambda k: [f, g + k, i, i]
    whole = [f, g, i, i, f]
    two_by_three = [*crop(1), *crop(2), *crop(3), n, *crop(4), *crop(5), *crop(6), n, n, *whole]
    three_by_one = [*crop(1), n, *crop(2), n, *crop(3), n, n, *whole]
    rows = [[1, *two_by_three, *three_by_one, 5], [1, *whole, 7, *whole, 8], [1, 5, 6]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    assert tile_grids(ids, i) == [(2, 3), (3, 1), (0, 0), (0, 0)]
    with pytest.raises(FeatureError, match="lines"):
        tile_grids(torch.tensor([[1, *crop(1), *crop(2), n, *crop(3), n, *whole]]), i)


@pytest.mark.parametrize("shape", [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_mosaic_of_internvl(shape):
    rows, cols = shape
    whole = families.noise(4, 3, rows * 8, cols * 8).cumsum(-1).cumsum(-2)
    tiles = whole.unflatten(1, (rows, 8)).unflatten(3, (cols, 8)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    thumbnail = torch.nn.functional.interpolate(whole[None], (8, 8), mode="bilinear", antialias=True)
    assert mosaic(torch.cat([tiles, thumbnail])) == shape
