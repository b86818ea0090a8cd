"""SigLIP relevance on tiny checkpoints saved to disk: what is loaded, what it computes, and whose tower it is."""

from __future__ import annotations

import copy

import pytest
import torch

import families
import tiny
from fsr import FSR, RelevanceError, prepare
from fsr.adapters import find
from fsr.pipeline import relevance_source
from fsr.signals import relevance
from fsr.signals.siglip_twin import SiglipTwin

DEPTH = 4  # layers of the whole tower; the model keeps the first three, as OneVision keeps 26 of 27
QUESTION = "where is the red car ?"


@pytest.fixture(scope="module")
def siglip():
    from transformers import SiglipConfig, SiglipModel, SiglipTextConfig

    vision = families.siglip_vision(num_hidden_layers=DEPTH, vision_use_head=True)
    text = SiglipTextConfig(
        vocab_size=len(tiny.SPECIAL) + len(tiny.WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return tiny.sharpen(SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())), 5)


@pytest.fixture(scope="module")
def folder(siglip, tmp_path_factory):
    place = tmp_path_factory.mktemp("siglip")
    siglip.save_pretrained(place)
    tiny.word_tokenizer("right", ends=True).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def onevision(siglip):
    """OneVision with the checkpoint's own tower, cut after its third layer."""
    model = copy.deepcopy(families.model_of("llava-onevision"))
    state = {k: v for k, v in siglip.vision_model.state_dict().items() if "layers.3." not in k and "head." not in k}
    model.model.vision_tower.load_state_dict(state)
    return model


@pytest.fixture
def known(monkeypatch, onevision, folder):
    """The fingerprint table with one more line."""
    monkeypatch.setitem(relevance.TWINS, relevance.fingerprint(onevision.model.vision_tower), (str(folder), 1))
    relevance_source._found.clear()


def test_fingerprints_of_published_towers():
    for layers in (26, 27):
        tower = torch.nn.Module()
        tower.config = families.siglip_vision(hidden_size=1152, num_hidden_layers=layers, patch_size=14, image_size=384)
        assert relevance.TWINS[relevance.fingerprint(tower)] == ("google/siglip-so400m-patch14-384", 1)


@torch.no_grad()
def test_only_what_is_missing_is_loaded_and_it_is_equal(siglip, onevision, folder):
    twin = SiglipTwin.from_checkpoint(str(folder), tower_layers=3)
    assert len(twin.vision.encoder.layers) == 1
    pixels = families.noise(0, 2, 3, families.SIDE, families.SIDE)
    cut = onevision.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    whole = siglip.vision_model(pixels)
    one = torch.stack([siglip.vision_model.head(whole.last_hidden_state[:, i : i + 1]) for i in range(16)], 1)
    assert torch.allclose(twin.tile_head(cut), torch.nn.functional.normalize(one, dim=-1), atol=1e-6)
    tokens = tiny.word_tokenizer("right", ends=True)(QUESTION, padding="max_length", max_length=8, return_tensors="pt")
    text = siglip.text_model(input_ids=tokens["input_ids"]).pooler_output[0]
    expected = torch.nn.functional.normalize(text, dim=0)
    assert torch.allclose(twin.embed_text(QUESTION, torch.device("cpu")), expected, atol=1e-6)
    full = SiglipTwin.from_checkpoint(str(folder), tower_layers=DEPTH)
    assert len(full.vision.encoder.layers) == 0
    with pytest.raises(RelevanceError, match="4 vision layers"):
        SiglipTwin.from_checkpoint(str(folder), tower_layers=5)


@torch.no_grad()
def test_long_questions_are_averaged_over_chunks(folder):
    twin = SiglipTwin.from_checkpoint(str(folder), tower_layers=3)
    long = "the red car and the blue dog in the green tree"
    parts = ["the red car and the blue", "dog in the green tree"]
    here = torch.device("cpu")
    expected = torch.nn.functional.normalize(sum(twin.embed_text(p, here) for p in parts) / 2, dim=0)
    assert torch.allclose(twin.embed_text(long, here), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [[(1, 0)], [(2, 0)], [(0, 1)]], ids=["tiles", "two pictures", "clip"])
@torch.no_grad()
def test_relevance_goes_through_the_models_own_packing(known, onevision, folder, rows, feature):
    """Embeddings per tile first (the missing layer needs whole tiles), packing afterwards; newlines have none."""
    inputs = families.prompts("llava-onevision", rows)
    report = prepare(onevision, FSR(keep=5), inputs, QUESTION).report
    twin = SiglipTwin.from_checkpoint(str(folder), tower_layers=3)
    base = onevision.model
    for selection in report.selections:
        structural = selection.geometry.tile < 0
        assert selection.relevance[structural].isnan().all() and selection.relevance[~structural].isfinite().all()
    first = report.selections[0]
    if rows == [(0, 1)]:
        state = base.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states[-1]
        pooled = base.apply_pooling(twin.tile_head(state)).flatten(0, 1)
        assert torch.allclose(first.relevance[:-1], twin(pooled, QUESTION), atol=1e-5)
    else:
        state = base.vision_tower(inputs["pixel_values"][0, :1], output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(first.relevance[:16], twin(twin.tile_head(state)[0], QUESTION), atol=1e-5)
    feature("llava-onevision", "relevance by the paired text tower")


def test_fine_tuned_tower_warns_and_wrong_tower_is_an_error(known, onevision):
    inputs = families.prompts("llava-onevision", [(1, 0)])
    tuned, wrong = copy.deepcopy(onevision), copy.deepcopy(onevision)
    with torch.no_grad():
        for p in tuned.model.vision_tower.parameters():
            p.add_(torch.randn_like(p) * 0.05 * p.std().nan_to_num(0))
        for p in wrong.model.vision_tower.parameters():
            p.copy_(torch.randn_like(p))
    with pytest.warns(UserWarning, match="relevance is approximate"):
        prepare(tuned, FSR(keep=5), inputs, QUESTION)
    with pytest.raises(RelevanceError, match="is not where this model's vision tower comes from"):
        prepare(wrong, FSR(keep=5), inputs, QUESTION)


def test_a_checkpoint_that_is_not_there_is_an_error(monkeypatch, onevision, tmp_path):
    monkeypatch.setitem(relevance.TWINS, relevance.fingerprint(onevision.model.vision_tower), (str(tmp_path), 1))
    relevance_source._found.clear()
    with pytest.raises(RelevanceError, match="could not be loaded"):
        prepare(onevision, FSR(keep=5), families.prompts("llava-onevision", [(1, 0)]), QUESTION)


@torch.no_grad()
def test_llava_with_a_siglip_tower(siglip, folder, monkeypatch):
    """Checkpoints of the plain LLaVA class with SigLIP: the state before the tower's final norm is scored."""
    from transformers import LlavaConfig

    config = LlavaConfig(
        vision_config=families.siglip_vision(), text_config=families.text(), image_token_id=families.IMAGE,
        image_seq_length=16, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    model = families.made("LlavaForConditionalGeneration", config, "sdpa")
    state = {k: v for k, v in siglip.vision_model.state_dict().items() if "layers.3." not in k and "head." not in k}
    model.model.vision_tower.load_state_dict(state)
    monkeypatch.setitem(relevance.TWINS, relevance.fingerprint(model.model.vision_tower), (str(folder), 1))
    inputs = families.prompts("llava", [(1, 0)])
    (selection,) = prepare(model, FSR(keep=5), inputs, QUESTION).report.selections
    one = siglip.vision_model(inputs["pixel_values"]).last_hidden_state
    patches = torch.cat([siglip.vision_model.head(one[:, i : i + 1]) for i in range(16)])
    tokens = tiny.word_tokenizer("right", ends=True)(QUESTION, padding="max_length", max_length=8, return_tensors="pt")
    text = siglip.text_model(input_ids=tokens["input_ids"]).pooler_output
    assert torch.allclose(selection.relevance, torch.cosine_similarity(patches, text), atol=1e-5)


def test_adapter_knows_whose_twin_it_is(onevision):
    assert find(onevision).paired_text_tower and not find(families.model_of("qwen2-vl")).paired_text_tower
