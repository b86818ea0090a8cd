"""`fsr calibrate`: pointing by source, weights of heads, signs, and the file that `relevance=` takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from families import model_of, prompts
from fsr import FSR, RelevanceError, UsageError, prepare
from fsr.asking.chat import chat_inputs
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.cli import main
from fsr.evaluation.calibrate import Pointing, calibrate
from fsr.evaluation.known_places import KnownPlace, folder_places, scene_places
from fsr.evaluation.question_set import build
from fsr.signals.calibration import RelevanceCalibration, fit_heads, load_calibration, pointing
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
    away = [Pointing(r, -p.float(), None, p) for r, p in zip(rows, inside)]
    found = calibrate(away, "x")
    assert (found.relevance, found.embedding_sign, found.pictures) == ("embedding", -1, 40)
    assert found.pointing["embedding, negated"] == 1 and "text tower" not in found.pointing
    assert found.pointing["chance"] == pytest.approx(0.1)
    with pytest.raises(RelevanceError, match="at least 20"):
        calibrate(away[:19])
    blind = [Pointing(torch.zeros(4, 30), torch.zeros(30), None, p & (torch.arange(30) > 0)) for p in inside]
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
    (found,) = folder_places(tmp_path)
    assert found.text == "the dog" and found.boxes.tolist() == [[0.5, 0.0, 1.0, 0.5]]
    (tmp_path / "places.json").unlink()
    (tmp_path / "places.csv").write_text("image,text,x0,y0,x1,y1\na.png,the dog,10,0,20,5\n")
    (same,) = folder_places(tmp_path)
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
            list(folder_places(tmp_path))
    (tmp_path / "places.csv").unlink()
    with pytest.raises(UsageError, match=r"places.json or places.csv"):
        list(folder_places(tmp_path))


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
    assert a.relevance == b.relevance == {1: "embedding", -1: "embedding, negated"}[printed["embedding_sign"]]
    assert torch.equal(a.selections[0].rows, b.selections[0].rows)
    assert main(["calibrate", "--out", str(tmp_path / "no" / "r.json")]) == 2
    assert main(["calibrate", "--questions", "8", "--out", str(out), "--device", "cpu"]) == 2
    assert "at least 20" in capsys.readouterr().err


def test_files(tmp_path):
    model, inputs = model_of("qwen3-vl"), prompts("qwen3-vl", [(1, 0)])
    file = tmp_path / "r.json"
    weights = (0.5, -0.25, 0.25, 0.0)
    RelevanceCalibration("first-layer", weights, 1).save(file)
    assert load_calibration(file).weights == weights
    report = prepare(model, FSR(keep=4), inputs, asked(1), processor=Numbers(), relevance=file).report
    assert report.relevance == "first-layer, weighted heads"
    RelevanceCalibration("first-layer", weights[:3], 1).save(file)
    with pytest.raises(RelevanceError, match=r"3 head weights .* another model"):
        prepare(model, FSR(keep=4), inputs, asked(1), processor=Numbers(), relevance=file)
    for text in ("{", "[]", "{}", json.dumps({"format": "other"}), file.read_text().replace('"first-layer"', '"x"')):
        file.write_text(text)
        with pytest.raises(RelevanceError, match="fsr calibrate"):
            load_calibration(file)
    with pytest.raises(UsageError, match="cannot read"):
        load_calibration(tmp_path / "none.json")
