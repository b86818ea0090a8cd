"""`fsr calibrate`: pointing by source, weights of heads, signs, and the file that `relevance=` takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from families import model_of, prompts
from fsr import FSR, RelevanceError, UsageError, prepare, prune
from fsr.adapters import find
from fsr.asking.chat import chat_inputs
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.cli import main
from fsr.evaluation.calibrate import Pointing, calibrate
from fsr.evaluation.fingerprint import relevance_key
from fsr.evaluation.known_places import KnownPlace, folder_places, folder_rows, scene_places
from fsr.evaluation.question_set import build
from fsr.methods import HAWK, Relevance
from fsr.pipeline.relevance_source import measured
from fsr.signals.calibration import RelevanceCalibration, fit_heads, load_calibration, pointing
from fsr.signals.embedding import EmbeddingRelevance
from fsr.signals.first_layer import weighted_heads
from fsr.tokens import Geometry
from test_first_layer import Numbers, asked


def drawn(pictures, seed=0):
    """Rows of four heads over 30 tokens: head 2 looks at the place, head 3 away from it, two look anywhere."""
    rng = torch.Generator().manual_seed(seed)
    rows, inside = [], []
    for _ in range(pictures):
        place = torch.zeros(30, dtype=torch.bool)
        place[torch.randperm(30, generator=rng)[:3]] = True
        noise = torch.randn(4, 30, generator=rng)
        noise[2] += 1.5 * place
        noise[3] -= 1.5 * place
        rows.append(torch.nn.functional.normalize(noise, dim=-1))
        inside.append(place)
    return rows, inside


def test_heads_are_found():
    rows, inside = drawn(80)
    fit = fit_heads(rows, inside)
    assert fit.weights is not None and fit.fitted > fit.equal + 0.2
    w = fit.weights
    assert w[2] > 0.3 and w[3] < -0.3 and abs(w[0]) < 0.1 and abs(w[1]) < 0.1
    assert sum(map(abs, w)) == pytest.approx(1, abs=1e-5)
    fresh, where = drawn(200, seed=1)
    # What cross-validation promised holds on pictures never seen.
    assert pointing([weighted_heads(r, w) for r in fresh], where) == pytest.approx(fit.fitted, abs=0.15)


def test_heads_without_a_place_stay_equal():
    """Nothing to find: fitted weights may point better by luck on few pictures, never by much."""
    rng = torch.Generator().manual_seed(3)
    rows = [torch.randn(4, 40, generator=rng) for _ in range(60)]
    inside = [torch.rand(40, generator=rng) < 0.1 for _ in rows]
    fit = fit_heads(rows, inside)
    assert fit.fitted < 0.3 and (fit.weights is None) == (fit.fitted <= fit.equal)
    with pytest.raises(RelevanceError, match="at least 8"):
        fit_heads(rows[:7], inside[:7])


def test_the_best_source_and_sign_are_named():
    rows, inside = drawn(40)
    away = [Pointing(r, -p.float()[None], None, p) for r, p in zip(rows, inside)]
    found = calibrate(away, "x")
    assert (found.relevance, found.embedding_sign, found.embedding_words, found.pictures) == (
        "embedding", -1, "mean", 40,
    )  # fmt: skip
    assert found.best == "embedding, negated"
    assert found.pointing["embedding, negated"] == 1 and "text tower" not in found.pointing
    assert found.pointing["chance"] == pytest.approx(0.1)
    with pytest.raises(RelevanceError, match="at least 20"):
        calibrate(away[:19])
    # One word of three names the thing, the others like other tokens more: only their strongest points there.
    spread = [torch.stack([2 * p.float(), 1.2 * p.float().roll(1), 1.9 * p.float().roll(1)]) for p in inside]
    found = calibrate([Pointing(r, w, None, p) for r, w, p in zip(rows, spread, inside)])
    assert (found.embedding_sign, found.embedding_words) == (1, "strongest") and found.pointing["embedding"] < 0.5
    assert found.best == "embedding, strongest word" and found.pointing[found.best] == 1
    blind = [Pointing(torch.zeros(4, 30), torch.zeros(2, 30), None, p & (torch.arange(30) > 0)) for p in inside]
    with pytest.raises(RelevanceError, match="better than chance"):
        calibrate([p for p in blind if p.inside.any()])


def test_places():
    place = KnownPlace(Image.new("RGB", (8, 8)), "x", torch.tensor([[0.5, 0.0, 1.0, 0.5]]))
    assert place.inside(Geometry.raster(2, 2).boxes).tolist() == [False, True, False, False]
    assert not place.inside(torch.full((1, 4), torch.nan)).any()
    questions = build("validation", 0, 16)
    owned = [(i.question.text, np.isin(questions.scenes[i.scene].owner, i.question.targets)) for i in questions.items]
    somewhere = [(text, cells) for text, cells in owned if cells.any()]
    for found, (text, cells) in zip(scene_places(questions), somewhere, strict=True):
        assert found.text == text
        assert found.inside(Geometry.raster(*cells.shape).boxes).tolist() == cells.flatten().tolist()


def test_a_folder_with_boxes(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "text": "the dog", "box": [10, 0, 20, 5]}]
    (tmp_path / "places.json").write_text(json.dumps(rows))
    (found,) = folder_places(folder_rows(tmp_path))
    assert found.text == "the dog" and found.boxes.tolist() == [[0.5, 0.0, 1.0, 0.5]]
    (tmp_path / "places.json").unlink()
    (tmp_path / "places.csv").write_text("image,text,x0,y0,x1,y1\na.png,the dog,10,0,20,5\n")
    (same,) = folder_places(folder_rows(tmp_path))
    assert torch.equal(same.boxes, found.boxes)
    for bad, words in (
        ("image,text,x0,y0,x1,y1\na.png,the dog,10,0,21,5\n", "row 1: .* 20 x 10 pixels"),
        ("image,text,x0,y0,x1,y1\na.png,the dog,10,0,10,5\n", "row 1"),
        ("image,text,x0,y0,x1\na.png,the dog,10,0,20\n", "row 1: give image, text and a box"),
        ("image,text,x0,y0,x1,y1\nb.png,the dog,10,0,20,5\n", "b.png"),
        ("", "no list of rows"),
    ):
        (tmp_path / "places.csv").write_text(bad)
        with pytest.raises(ValueError, match=words):
            list(folder_places(folder_rows(tmp_path)))
    (tmp_path / "places.csv").unlink()
    with pytest.raises(UsageError, match=r"places.json or places.csv"):
        folder_rows(tmp_path)


def test_the_command_writes_a_file_that_works(tmp_path, capsys):
    out = tmp_path / "r.json"
    assert main(["calibrate", "--questions", "40", "--out", str(out), "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pointing"]["text tower"] > 0.9 and printed["pictures"] == 40
    assert {"first-layer, equal heads", "embedding", "embedding, negated", "chance"} <= printed["pointing"].keys()
    model, processor = load("mini", "cpu")
    question = "what color is the dog?"
    inputs = chat_inputs(processor, bundled_scene(), question)
    a = prepare(model, FSR(keep=8), inputs, question, processor=processor, relevance=out).report
    b = prepare(model, FSR(keep=8), inputs, question, processor=processor, relevance=str(out)).report
    assert a.relevance == b.relevance == "embedding, strongest word"
    assert printed["pointing"][a.relevance] > 0.9 > printed["pointing"]["embedding"]
    assert torch.equal(a.selections[0].rows, b.selections[0].rows)


def test_what_cannot_be_calibrated_is_said_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fsr.asking.load.load", lambda *a, **k: pytest.fail("the model was loaded"))
    out = str(tmp_path / "r.json")

    def told(*words):
        assert main(["calibrate", *words]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        return said.err

    assert "a folder that exists" in told("--out", str(tmp_path / "no" / "r.json"))
    assert "at least 20" in told("--questions", "8", "--out", out)
    assert "places.json" in told("--pictures", str(tmp_path), "--out", out)
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "text": "the dog", "box": [10, 0, 20, 5]}] * 19
    (tmp_path / "places.json").write_text(json.dumps(rows))
    assert "19 texts" in told("--pictures", str(tmp_path), "--out", out)
    (tmp_path / "places.json").write_text(json.dumps([*rows, {**rows[0], "image": "b.png"}]))
    assert "row 20: there is no picture" in told("--pictures", str(tmp_path), "--out", out)


def test_auto_reads_the_file_beside_the_weights(tmp_path, monkeypatch):
    """On families without a text tower; without a file, and on others, nothing changes."""
    model, inputs = model_of("qwen3-vl"), prompts("qwen3-vl", [(1, 0)])
    monkeypatch.setattr(model, "name_or_path", str(tmp_path), raising=False)

    def report(method, **given):
        return prepare(model, method, inputs, asked(1), processor=Numbers(), **given).report

    assert report(FSR(keep=4)).relevance == "none"
    with pytest.raises(RelevanceError, match="--relevance"):
        report(Relevance(keep=4))
    file = tmp_path / "relevance.json"
    for source, words, name in (
        ("embedding", "strongest", "embedding, negated, strongest word"),
        ("embedding", "mean", "embedding, negated"),
        ("first-layer", "mean", "first-layer"),
    ):
        RelevanceCalibration(source, None, -1, embedding_words=words).save(file)
        for method in (FSR(keep=4), Relevance(keep=4)):
            found, given = report(method), report(method, relevance=file)
            assert found.relevance == given.relevance == name and not found.notes
            assert torch.equal(found.selections[0].rows, given.selections[0].rows)
            assert torch.equal(found.selections[0].relevance, given.selections[0].relevance)
        assert report(HAWK(keep=4)).relevance == "first-layer"  # a method with a source of its own keeps it
        assert report(FSR(keep=4), relevance="none").relevance == "none"
    with prune(model, FSR(keep=4), processor=Numbers()) as pruned:
        model(**inputs, question=asked(1))
    assert pruned.last.relevance == "first-layer"
    file.write_text("{}")
    with pytest.raises(RelevanceError, match=r"relevance.json is not a file that `fsr calibrate` wrote"):
        report(FSR(keep=4))
    llava = find(model_of("llava"))
    monkeypatch.setattr(llava.model, "name_or_path", str(tmp_path), raising=False)
    assert measured(llava) is None


def test_the_strongest_word():
    """The largest cosine of any of the question's words, on a sign's side; one word is its own mean."""
    embedding = torch.nn.Embedding(40, 8)
    features, numbers = torch.randn(5, 8), [30, 31, 32]
    cosines = torch.stack([torch.cosine_similarity(embedding.weight[i], features) for i in numbers]).detach()
    for sign in (1, -1):
        scorer = EmbeddingRelevance(embedding, Numbers(), sign, "strongest")
        assert torch.allclose(scorer(features, "30 31 32"), (sign * cosines).max(0).values, atol=1e-6)
        mean = EmbeddingRelevance(embedding, Numbers(), sign)
        assert torch.allclose(mean(features, "30 31 32"), sign * cosines.mean(0), atol=1e-6)
        assert torch.allclose(mean(features, "31"), scorer(features, "31"))
    with pytest.raises(RelevanceError, match="'mean' or 'strongest'"):
        EmbeddingRelevance(embedding, words="loudest")


def test_partial_results_hang_on_the_calibration(tmp_path, monkeypatch):
    model = model_of("qwen3-vl")
    monkeypatch.setattr(model, "name_or_path", str(tmp_path), raising=False)
    keys = [relevance_key(model, "auto")]
    for words in ("mean", "strongest"):
        RelevanceCalibration("embedding", None, 1, embedding_words=words).save(tmp_path / "relevance.json")
        keys.append(relevance_key(model, "auto"))
    assert len(set(keys)) == 3 and keys[0] == ""
    assert relevance_key(model, str(tmp_path / "relevance.json")) not in keys
    assert relevance_key(model, "embedding") == "-embedding" and relevance_key(model_of("llava"), "auto") == ""


def test_files(tmp_path):
    model, inputs = model_of("qwen3-vl"), prompts("qwen3-vl", [(1, 0)])
    file = tmp_path / "r.json"
    weights = (0.5, -0.25, 0.25, 0.0)
    RelevanceCalibration("first-layer", weights, 1).save(file)
    assert load_calibration(file).weights == weights
    report = prepare(model, FSR(keep=4), inputs, asked(1), processor=Numbers(), relevance=file).report
    assert report.relevance == "first-layer, weighted heads"
    old = {k: v for k, v in json.loads(file.read_text()).items() if k != "embedding_words"}
    file.write_text(json.dumps(old))  # written before there was a choice
    assert load_calibration(file).embedding_words == "mean"
    for wrong in ({"embedding_words": "loudest"}, {"embedding_sign": 0}):
        file.write_text(json.dumps(old | wrong))
        with pytest.raises(RelevanceError, match="fsr calibrate"):
            load_calibration(file)
    RelevanceCalibration("first-layer", weights[:3], 1).save(file)
    with pytest.raises(RelevanceError, match=r"3 head weights .* another model"):
        prepare(model, FSR(keep=4), inputs, asked(1), processor=Numbers(), relevance=file)
    for text in ("{", "[]", "{}", json.dumps({"format": "other"}), file.read_text().replace('"first-layer"', '"x"')):
        file.write_text(text)
        with pytest.raises(RelevanceError, match="fsr calibrate"):
            load_calibration(file)
    with pytest.raises(UsageError, match="cannot read"):
        load_calibration(tmp_path / "none.json")
