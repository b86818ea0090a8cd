"""A sample of the map of all classes (benchmarks/class_map.py): one per generic adapter and per reason to refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import class_map
import class_twins
from fsr import FSR, UnsupportedModelError, prepare
from fsr.adapters import find
from fsr.signals.attention import received_attention
from fsr.signals.tap import record_layers

WORKS = {
    "cohere2_vision": "generic: saliency, keys",
    "exaone4_5": "generic grid: saliency, keys",
    "cosmos3_edge": "generic grid, multi-axial: saliency, keys",
    "gemma4_unified": "generic, without a tower: features alone",
    "got_ocr2": "generic: features alone",
}
REFUSED = {
    "idefics2": "flows into several tokens",
    "ovis2": "visual_indicator_features",
    "hy_v4_vl": "not one for each m x m",
    "instructblip": "no adapter for model type",
}
HERE = class_twins.NAMES


@pytest.mark.parametrize("model_type", [n for n in WORKS if n in HERE])
def test_classes_that_work(model_type):
    row = class_map.look(model_type)
    assert (row.verdict, row.text) == ("works", WORKS[model_type])


@pytest.mark.parametrize("model_type", [n for n in REFUSED if n in HERE])
def test_classes_that_are_refused(model_type):
    row = class_map.look(model_type)
    assert row.verdict == "refused" and REFUSED[model_type] in row.text
    assert "\n" not in row.text


@torch.no_grad()
def test_scores_of_generic_rasters_are_means_of_blocks():
    """Cohere 2 Vision: 4 x 4 patches, 2 x 2 of them make a token, in the order that its own pixel shuffle gives."""
    model = class_twins.twin("cohere2_vision")
    adapter = find(model)
    inputs = class_twins.inputs_for(model, adapter.base)
    with record_layers(adapter.vision_tower, [adapter.saliency_layer]) as states:
        adapter.base.get_image_features(inputs["pixel_values"])
    layer = states(adapter.saliency_layer)
    raw = received_attention(layer.q, layer.k, layer.scale).unflatten(1, (4, 4))
    blocks = torch.nn.functional.avg_pool2d(raw, 2).flatten(1)
    for unit, expected in zip(adapter.encode(inputs, frozenset({"saliency"}))[0].units, blocks):
        where = (unit.geometry.boxes[:, 1] * 2 * 2 + unit.geometry.boxes[:, 0] * 2).round().long()
        assert torch.allclose(unit.saliency, expected[where], atol=1e-6)
        assert sorted(where.tolist()) == [0, 1, 2, 3]


def test_what_is_no_square_is_refused():
    """2 x 8 patches are as many as 4 x 4; clips are not known to generic adapters."""
    model = class_twins.twin("lfm2_vl")
    inputs = class_twins.inputs_for(model, find(model).base)
    prepare(model, FSR(keep=3, relevance="none"), inputs)
    before = set(model.__dict__)
    flat = {**inputs, "spatial_shapes": torch.tensor([[2, 8], [2, 8]])}
    with pytest.raises(UnsupportedModelError, match=r"spatial_shapes .* is no square"):
        prepare(model, FSR(keep=3, relevance="none"), flat)
    assert set(model.__dict__) == before


@torch.no_grad()
def test_boxes_of_generic_grids_follow_the_picture():
    """4 x 6 patches in 2 x 2 blocks are 2 x 3 tokens in raster order."""
    model = class_twins.twin("exaone4_5")
    adapter = find(model)
    inputs = class_twins.inputs_for(model, adapter.base)
    (unit, _) = adapter.encode(inputs, frozenset({"saliency"}))[0].units
    assert unit.geometry.grid == (2, 3) and unit.count == 6
    assert unit.geometry.boxes[0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert unit.geometry.boxes[5].tolist() == pytest.approx([2 / 3, 1 / 2, 1, 1])


def test_the_page_is_about_these_releases():
    page = class_map.PAGE.read_text(encoding="utf-8")
    assert f"## transformers {transformers.__version__}" in page
    assert page.count("| wrong |") == 0
