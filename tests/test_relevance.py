"""Relevance to the question: the paired CLIP text tower, how it is found, checked, saved, and which sign it has."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.functional import cosine_similarity

import tiny
from fsr import FSR, ClipTwin, QuestionError, RelevanceError, load_twin, prepare, prune, save_twin
from fsr.methods import PaperFSR
from fsr.signals import relevance as module
from fsr.signals.calibration import calibrate_sign
from fsr.signals.clip_twin import Resemblance
from fsr.signals.relevance import fingerprint

METHOD = FSR(keep=9)


@pytest.fixture(scope="module")
def clip(llava):
    return tiny.clip(tower=llava.model.vision_tower)


@pytest.fixture(scope="module")
def words():
    return tiny.word_tokenizer(ends=True, longest=16)


@pytest.fixture(scope="module")
def twin(clip, words):
    return ClipTwin.from_clip(clip, words, sign=-1)


@pytest.fixture(scope="module")
def saved_clip(clip, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@torch.no_grad()
def reference(clip, words, pixels, text, layer):
    """Straight from the CLIP model: patches of a hidden state through its head, against its text feature."""
    out = clip.vision_model(pixels, output_hidden_states=True)
    hidden = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
    patches = clip.visual_projection(clip.vision_model.post_layernorm(hidden[:, 1:]))
    feature = clip.get_text_features(**words(text, return_tensors="pt", return_token_type_ids=False)).pooler_output
    return cosine_similarity(patches, feature[:, None], dim=-1)


@pytest.mark.parametrize("layer", [-2, -1])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_equal_clip(llava, clip, words, batch, layer, sign):
    twin = ClipTwin.from_clip(clip, words, sign=sign, layer=layer)
    report = prepare(llava, METHOD, batch, question="where is the dog ?", relevance=twin).report
    expected = sign * reference(clip, words, batch["pixel_values"], "where is the dog ?", layer)
    got = torch.stack([s.relevance for s in report.selections])
    assert (got - expected).abs().max() < 1e-5
    assert report.timings["text_tower"] > 0


def test_each_row_has_its_own_question(llava, clip, words, twin, batch, processor):
    asked = ["what colour is the dog ?", "where is the cat ?", "unused"]
    given = prepare(llava, METHOD, batch, question=asked, relevance=twin).report
    with prune(llava, METHOD, processor=processor, relevance=twin) as pruned:
        llava.generate(**batch, max_new_tokens=1)
        read = pruned.last
        llava.generate(**batch, max_new_tokens=1, question=asked)
        llava(**batch, question=asked)
    assert read.questions == (asked[0], asked[1], None) and given.questions == tuple(asked)
    pixels = batch["pixel_values"]
    for i, row in enumerate((0, 0, 1)):
        expected = -reference(clip, words, pixels[i : i + 1], asked[row], -2)[0]
        for report in (given, read, pruned.last):
            assert (report.selections[i].relevance - expected).abs().max() < 1e-5


def test_question_changes_what_is_kept(llava, twin, single):
    kept = {
        tuple(prepare(llava, METHOD, single, question=q, relevance=twin).report.selections[0].rows.tolist())
        for q in ("what colour is the dog ?", "how many are there ?", "describe the red car in the picture")
    }
    assert len(kept) > 1


def test_question_errors(llava, twin, batch):
    cases = ((None, "processor="), (["one"], "1 question for 3"), ("  ", "empty"), (["a", "", "b"], "empty"))
    for question, words in cases:
        with pytest.raises(QuestionError, match=words):
            prepare(llava, METHOD, batch, question=question, relevance=twin)


def test_long_questions_are_averaged(twin, words):
    """16 places hold 14 words: 20 words make two chunks, nothing is cut off."""
    text = ["dog"] * 14 + ["red", "car", "in", "the", "picture", "?"]
    whole = twin.embed_text(" ".join(text), torch.device("cpu"))
    parts = [twin.embed_text(" ".join(t), torch.device("cpu")) for t in (text[:14], text[14:])]
    assert torch.allclose(whole, torch.nn.functional.normalize(sum(parts) / 2, dim=-1), atol=1e-6)
    assert not torch.allclose(whole, parts[0], atol=1e-2)
    assert len(twin._chunks(" ".join(text[:14]))) == 1


def test_text_is_embedded_once(clip, words, llava, batch):
    twin = ClipTwin.from_clip(clip, words, sign=1)
    calls = []
    hook = twin.text.register_forward_hook(lambda *a: calls.append(1))
    for _ in range(3):
        prepare(llava, METHOD, batch, question="where is the dog ?", relevance=twin)
    hook.remove()
    assert len(calls) == 1


def test_checkpoint_loads_only_what_is_needed(saved_clip, twin, single, llava):
    loaded = ClipTwin.from_checkpoint(str(saved_clip), sign=-1)
    assert sum(v.numel() for v in loaded.head.values()) < 12_000
    assert all(torch.equal(loaded.head[n], twin.head[n]) for n in twin.head)
    whole = loaded.text.state_dict()
    assert set(whole) == set(twin.text.state_dict())
    assert all(torch.equal(whole[n], v) for n, v in twin.text.state_dict().items())
    a, b = (
        prepare(llava, METHOD, single, question="where is the dog ?", relevance=t).report.selections[0].relevance
        for t in (loaded, twin)
    )
    # Weights mapped from a file lie at other addresses, and kernels for unaligned data sum in another order.
    assert (a - b).abs().max() < 1e-6


def test_twin_beside_the_model_is_found(llava, twin, single, tmp_path):
    llava.save_pretrained(tmp_path)
    save_twin(tmp_path, twin)
    assert (tmp_path / "text_tower" / "relevance.json").read_text().count('"sign": -1') == 1
    model = type(llava).from_pretrained(tmp_path).eval()
    question = "where is the dog ?"
    report = prepare(model, METHOD, single, question=question).report
    expected = prepare(llava, METHOD, single, question=question, relevance=twin).report
    assert (report.selections[0].relevance - expected.selections[0].relevance).abs().max() < 1e-6
    with prune(model, METHOD) as pruned:
        model.generate(**single, max_new_tokens=1, question=question)
    assert torch.equal(pruned.last.selections[0].rows, expected.selections[0].rows)
    again = load_twin(tmp_path)
    assert (again.sign, again.layer, again.eps) == (twin.sign, twin.layer, twin.eps)
    (tmp_path / "text_tower" / "relevance.json").write_text('{"kind": "other"}')
    with pytest.raises(RelevanceError, match="'other'"):
        load_twin(tmp_path)
    with pytest.raises(RelevanceError, match="save_twin"):
        load_twin(tmp_path / "text_tower")


def test_twin_is_found_by_fingerprint(saved_clip, twin, single, monkeypatch):
    model = tiny.llava()
    key = fingerprint(model.model.vision_tower)
    assert key == ("clip_vision_model", 32, 3, 8, 48)
    monkeypatch.setitem(module.TWINS, key, (str(saved_clip), 1))
    loads = []
    inner = ClipTwin.from_checkpoint
    monkeypatch.setattr(ClipTwin, "from_checkpoint", lambda *a, **k: loads.append(a) or inner(*a, **k))
    for _ in range(2):
        report = prepare(model, METHOD, single, question="where is the dog ?").report
    expected = prepare(model, METHOD, single, question="where is the dog ?", relevance=twin).report
    assert (report.selections[0].relevance + expected.selections[0].relevance).abs().max() < 1e-6
    assert len(loads) == 1
    monkeypatch.setitem(module.TWINS, key, (str(saved_clip / "nowhere"), 1))
    with pytest.raises(RelevanceError, match="could not be loaded"):
        prune(tiny.llava(), METHOD)


def test_real_fingerprints():
    from transformers import CLIPVisionConfig

    llava15 = CLIPVisionConfig(
        hidden_size=1024, num_hidden_layers=24, patch_size=14, image_size=336, num_attention_heads=16
    )
    tower = torch.nn.Module()
    tower.config = llava15
    assert module.TWINS[fingerprint(tower)] == ("openai/clip-vit-large-patch14-336", -1)


def test_wrong_tower_is_refused(llava, words, single):
    stranger = ClipTwin.from_clip(tiny.clip(seed=9), words, sign=1)
    with pytest.raises(RelevanceError, match="not where this model's vision tower comes from"):
        prune(llava, METHOD, relevance=stranger)
    near = tiny.clip(tower=llava.model.vision_tower)
    with torch.no_grad():
        weight = near.vision_model.embeddings.patch_embedding.weight
        weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    fine_tuned = ClipTwin.from_clip(near, words, sign=1)
    assert fine_tuned.compare(llava.model.vision_tower) is Resemblance.CLOSE
    with pytest.warns(UserWarning, match="approximate"):
        prune(llava, METHOD, relevance=fine_tuned)
    rounded = tiny.clip(tower=llava.model.vision_tower).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(llava, METHOD, relevance=ClipTwin.from_clip(rounded, words, sign=1))


def test_none_and_unknown_choices(llava, single):
    report = prepare(llava, METHOD, single, relevance="none").report
    assert report.selections[0].relevance is None and report.questions is None
    with pytest.raises(RelevanceError, match="'auto', 'none'"):
        prune(llava, METHOD, relevance="clip")

    class Needs(tiny.Salient):
        name = "test-needs"
        needs = frozenset({"relevance"})

    with pytest.raises(RelevanceError, match="cannot do without"):
        prune(llava, Needs(keep=3), relevance="none")
    assert prune(llava, tiny.Salient(keep=3)).work.scorer is None  # reads none: "auto" looks for nothing


def test_any_callable_with_a_layer_is_a_scorer(llava, single):
    class Ramp:
        layer = -1

        def __call__(self, patches, question):
            return torch.arange(patches.shape[0], dtype=torch.float32) * len(question)

    report = prepare(llava, PaperFSR(keep=9, beta=0.0, rho=1.0), single, question="ab", relevance=Ramp()).report
    assert report.selections[0].rows.tolist() == list(range(27, 36))


def test_sign_is_found_by_pointing(llava, clip, words):
    """Pictures whose best patch is known: whichever way a scorer is inverted, calibration finds it."""
    boxes = torch.tensor([[x, y, x + 1, y + 1] for y in range(6) for x in range(6)]) / 6.0
    g = torch.Generator().manual_seed(0)

    class Inverted:
        layer = -2

        def __call__(self, patches, question):
            return -patches[:, 0]

    samples = []
    for i in range(20):
        patches = torch.randn(36, 4, generator=g)
        best = int(patches[:, 0].argmax()) if i % 4 else 0
        samples.append((patches, boxes, tuple(boxes[best].tolist()), "dog"))
    found = calibrate_sign(Inverted(), samples)
    assert found.sign == -1 and found.count == 20 and found.hits_negative >= 15 and found.hits_positive < 5
    with pytest.raises(RelevanceError, match="either sign"):
        calibrate_sign(Inverted(), [])
    # The sign that a twin declares is undone first: declared either way, the answer is the same.
    image = tiny.prompts(tiny.llava_processor(), [tiny.chat(("?", 1))], [tiny.picture(0)])["pixel_values"]
    scores = reference(clip, words, image, "dog", -2)[0]
    state = clip.vision_model(image, output_hidden_states=True).hidden_states[-2][0, 1:]
    target = tuple(boxes[int(scores.argmin())].tolist())
    for declared in (1, -1):
        twin = ClipTwin.from_clip(clip, words, sign=declared)
        assert calibrate_sign(twin, [(state, boxes, target, "dog")]).sign == -1


def test_half_a_checkpoint_is_refused(clip, words, twin, tmp_path):
    """Weights that a checkpoint lacks would be drawn at random."""
    twin.text.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(RelevanceError, match=r"it lacks .*vision_model"):
        ClipTwin.from_checkpoint(str(tmp_path), sign=1)


def test_bad_settings(clip, words, twin):
    with pytest.raises(RelevanceError, match="sign must be"):
        ClipTwin.from_clip(clip, words, sign=0)
    with pytest.raises(RelevanceError, match="wrong text tower"):
        twin(torch.zeros(4, 7), "dog")
