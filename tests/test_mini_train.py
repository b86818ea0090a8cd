"""The recipe runs from nothing to a folder that loads, and an interrupted stage ends where an unbroken one does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fsr.asking.answer import answer
from fsr.asking.load import load
from fsr.methods import FSR
from fsr.minivlm import loop
from fsr.minivlm.export import export, mini_processor
from fsr.minivlm.scenes import draw
from fsr.minivlm.train import STAGES, Recipe, train_stage
from fsr.minivlm.train_language import language_batch
from fsr.minivlm.train_vision import normalise_pixels, vision_batch

TINY = replace(
    Recipe().scaled(1e-9), batch=2, questions=4, vision=3, vision_few=1, language=3, symbols=3, symbols_stop=3
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    for stage in STAGES:
        train_stage(stage, folder, TINY, CPU, workers=0)
    return folder


def test_the_whole_recipe_makes_a_model_that_answers(trained):
    out = export(trained, trained / "model")
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    assert size < 15e6
    model, processor = load(str(out))
    image = Image.fromarray(draw(np.random.default_rng(0), "test").image)
    result = answer(model, processor, image, "is there a dog?", FSR(keep=16), max_new_tokens=3)
    assert result.selection.kept == 16 and result.selection.total == 144
    assert result.selection.relevance is not None, "the text tower beside the model must be found"
    curves = json.loads((out / "training.json").read_text())
    assert set(curves) == set(STAGES) and all(curves[s][-1]["step"] == getattr(TINY, s) for s in STAGES)


def test_a_finished_stage_is_left_alone(trained):
    before = (trained / "fit.pt").read_bytes()
    train_stage("fit", trained, TINY, CPU, workers=0)
    assert (trained / "fit.pt").read_bytes() == before


def test_a_killed_stage_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    for file in ("vision.pt", "symbols.pt", "fit.pt"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())
    step_of = loop.nn.utils.clip_grad_norm_
    calls = iter([None, None, KeyboardInterrupt()])

    def killed_in_the_third_step(*args, **kwargs):
        trouble = next(calls)
        if trouble:
            raise trouble
        return step_of(*args, **kwargs)

    original = loop.run_stage
    monkeypatch.setattr("fsr.minivlm.train.run_stage", lambda *a, **k: original(*a, **k, save_every=1))
    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", killed_in_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        train_stage("language", tmp_path, TINY, CPU, workers=0)
    assert torch.load(tmp_path / "language.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", step_of)
    train_stage("language", tmp_path, TINY, CPU, workers=0)
    a, b = (torch.load(f / "language.pt", weights_only=True)["modules"] for f in (trained, tmp_path))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_batches_say_what_the_scene_shows():
    rng = np.random.default_rng(3)
    vision = vision_batch(rng, 2)
    assert vision.masks.shape == (2, 8, 144) and vision.labels["kind"].max() <= 24
    rows = vision.labels["row"].view(2, 12, 12)
    assert torch.equal(rows[0, :, 0], torch.arange(12)) and bool((rows == rows[..., :1]).all())
    batch = language_batch(rng, 2, 4)
    asked = batch.kinds >= 0
    assert asked.any() and bool((batch.answers.view(2, 4, 12) >= 0).any(-1)[asked].all())
    look = batch.look.view(2, 4, 12, 145).sum(-1)
    assert set(look.unique().round(decimals=4).tolist()) <= {0.0, 1.0}


def test_the_stock_processor_sees_what_training_saw():
    image = draw(np.random.default_rng(2), "test").image
    pixels = mini_processor().image_processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, normalise_pixels(image[None]), atol=1e-6)
