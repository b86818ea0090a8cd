"""The second recipe runs from mini's weights to a folder that loads, and its warm start carries meaning over."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fsr.asking.answer import answer
from fsr.asking.load import load, world_of
from fsr.cli import main
from fsr.methods import FSR
from fsr.minivlm.native.build import build_qwen3
from fsr.minivlm.native.export import export
from fsr.minivlm.native.language import asked_batch, language_loss
from fsr.minivlm.native.scenes import draw_native
from fsr.minivlm.native.start import fitted_symbols, transplant_language, transplant_vision
from fsr.minivlm.native.train import NativeRecipe, train_stage
from fsr.minivlm.train import STAGES
from fsr.minivlm.train_language import LookUps, Symbols

TINY = replace(
    NativeRecipe().scaled(1e-9), questions=3, vision=2, vision_few=1, language=2, language_few=1, symbols=2, fit=1
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini-qwen3")
    for stage in STAGES:
        train_stage(stage, folder, TINY, torch.device("cpu"), workers=0)
    return folder


def test_the_whole_recipe_makes_a_model_that_answers(trained):
    out = export(trained, trained / "model")
    assert sum(f.stat().st_size for f in out.iterdir()) < 12e6
    model, processor = load(str(out))
    assert world_of(model.config) == "native"
    scene = draw_native(np.random.default_rng(0), (4, 6), "test")
    result = answer(model, processor, Image.fromarray(scene.image), "is there a dog?", FSR(keep=16), max_new_tokens=3)
    assert result.selection.kept == 16 and result.selection.total == 96
    curves = json.loads((out / "training.json").read_text())
    assert set(curves) == set(STAGES) and curves["language"][-1]["step"] == 2
    stock = json.loads((out / "processor_config.json").read_text())
    assert stock["processor_class"] == "Qwen3VLProcessor"  # what Transformers and engines load where torchvision is


def test_finished_stages_are_left_alone(trained):
    before = (trained / "vision.pt").read_bytes()
    train_stage("vision", trained, TINY, torch.device("cpu"), workers=0)
    assert (trained / "vision.pt").read_bytes() == before


def test_the_look_ups_of_mini_carry_over():
    """Without a step of training, attention goes from the asked word to its tokens, far more than by chance."""
    mini, _ = load("mini", "cpu")
    model = build_qwen3()
    model.set_attn_implementation("eager")
    maps = LookUps(model)
    batch = asked_batch(np.random.default_rng(1), 3, 6, None, None)
    blank, symbols = Symbols(192), fitted_symbols(mini, 48)
    with torch.no_grad():
        _, before = language_loss(model, maps, batch, None, 1.0, blank)
        transplant_language(mini, model)
        _, after = language_loss(model, maps, batch, None, 1.0, symbols)
    assert before["look"] > 2 and after["look"] < 1  # minus the log of the share of attention


def test_the_filters_answer_to_a_shrunken_patch_as_to_the_whole_one():
    mini, _ = load("mini", "cpu")
    model = build_qwen3()
    transplant_vision(mini, model)
    smooth = torch.linspace(-1, 1, 12)[None, :] * torch.linspace(0.2, 1, 12)[:, None]
    large = torch.stack([smooth, -smooth, smooth.T])
    small = torch.nn.functional.interpolate(large[None], (8, 8), mode="bilinear", antialias=True)[0]
    weight = model.model.visual.patch_embed.proj.weight
    got = torch.einsum("ecthw,chw->e", weight, small)
    embedding, norm = mini.model.vision_tower.embeddings.patch_embedding, mini.model.vision_tower.pre_layrnorm
    plain = torch.einsum("echw,chw->e", embedding.weight, large)
    wanted = norm.weight * (plain - plain.mean())
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=0) > 0.98


def test_nothing_to_export_is_said(tmp_path, capsys):
    assert main(["train", "--model", "mini-qwen3", "--stage", "export", "--out", str(tmp_path)]) == 2
    assert "stage vision has not run" in capsys.readouterr().err
