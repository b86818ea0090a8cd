"""A sample of the map of all classes (benchmarks/class_map.py): one per generic adapter and per reason to refuse."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import class_look
import class_rows
import class_twins
import families
import models_glance
from class_workers import NotReached, Stopped, results
from fsr import FSR, FSRError, UnsupportedModelError, prepare
from fsr.adapters import find
from fsr.adapters.arrangement import Arrangement, arrangement_of
from fsr.methods import DivPrune
from fsr.signals.attention import received_attention
from fsr.signals.tap import record_layers

WORKS = {
    "cohere2_vision": "generic: saliency, keys",
    "exaone4_5": "generic grid: saliency, keys; clips",
    "cosmos3_edge": "generic grid, multi-axial: saliency, keys; clips",
    "hunyuan_vl": "generic grid, multi-axial: saliency, keys",
    "idefics2": "generic: features alone",
    "chameleon": "generic, without a tower: features alone",
    "gemma4_unified": "generic, without a tower: features alone",
    "got_ocr2": "generic: features alone",
}
REFUSED = {
    "ovis2": "visual_indicator_features",
    "fuyu": "without a pooler_output",
    "inkling_mm_model": "features come one by one",
    "instructblip": "no generic one fits: its config has no",
}
HERE = class_twins.NAMES


@pytest.mark.parametrize("model_type", [n for n in WORKS if n in HERE])
def test_classes_that_work(model_type):
    row = class_look.look(model_type)
    assert (row.verdict, row.text) == ("works", WORKS[model_type])


@pytest.mark.parametrize("model_type", [n for n in REFUSED if n in HERE])
def test_classes_that_are_refused(model_type):
    row = class_look.look(model_type)
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


def test_methods_that_read_a_tower_are_refused_where_tokens_have_no_place():
    """Idefics 2: each token sees the whole picture. Once refused, the model is not asked again."""
    model = class_twins.twin("idefics2")
    adapter = find(model)
    inputs = class_twins.inputs_for(model, adapter.base)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"'divprune'.*flows into several tokens"):
            prepare(model, FSR(keep=3, relevance="none"), inputs)
    report = prepare(model, DivPrune(keep=3), inputs).report
    assert [s.kept for s in report.selections] == [3, 3] and report.selections[0].geometry is None


@torch.no_grad()
def test_line_ends_of_generic_grids_are_structural():
    """HunYuan-VL: a mark, rows that end with a token of their own, another mark."""
    if "hunyuan_vl" not in HERE:
        pytest.skip("not in this release")
    model = class_twins.twin("hunyuan_vl")
    adapter = find(model)
    inputs = class_twins.inputs_for(model, adapter.base)
    unit = adapter.encode(inputs, frozenset({"saliency"}))[0].units[0]
    assert unit.structural.nonzero().flatten().tolist() == [0, 4, 8, 9]  # 2 rows of 3
    assert unit.saliency[~unit.structural].isfinite().all()
    assert unit.geometry.boxes[1].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    wrong = {**inputs, "image_grid_thw": torch.tensor([[1, 4, 6], [1, 4, 4], [1, 4, 4]])}
    with pytest.raises(FSRError):
        prepare(model, FSR(keep=3, relevance="none"), wrong)


@torch.no_grad()
def test_frames_of_clips_in_generic_grids():
    """Two steps of 4 x 4 patches are two frames of 2 x 2 tokens."""
    model = class_twins.twin("exaone4_5")
    adapter = find(model)
    clip = class_twins.clip_for(model, adapter, class_twins.inputs_for(model, adapter.base))
    (unit,) = adapter.encode(clip, frozenset({"saliency"}))[0].units
    assert unit.geometry.frame.tolist() == [0] * 4 + [1] * 4
    assert unit.geometry.boxes[5].tolist() == pytest.approx([1 / 2, 0, 1, 1 / 2])


@pytest.mark.parametrize("raster", [False, True])
@pytest.mark.parametrize(("before", "line_end", "after"), [(0, 0, 0), (1, 1, 1), (0, 2, 0)])
def test_arrangements_are_found_and_packed(raster, before, line_end, after):
    """What `owners` says is found again, and the channels of each token are those of its own patches."""
    grids, made = [(1, 4, 6), (2, 4, 4)], Arrangement(2, raster, before, line_end, after)
    counts = [before + t * h // 2 * (w // 2 + line_end) + after for t, h, w in grids]
    owner = torch.cat([made.owners(g) + s for g, s in zip(grids, (0, counts[0]))])
    assert arrangement_of(owner, grids, counts) == made
    assert arrangement_of(owner.flip(0), grids, counts) is None
    one = made.owners(grids[0])
    packed = made.pack(one[:, None].float(), grids[0]).squeeze(-1)
    assert len(packed) == counts[0]
    real = packed.isfinite().all(-1)
    assert torch.equal(packed[real], real.nonzero().float().expand(-1, 4))


def test_the_page_is_about_these_releases():
    """`make classes` compares all of it with a fresh map."""
    rows = class_rows.read(transformers.__version__)
    assert set(rows) == set(HERE) and {row.verdict for row in rows.values()} <= class_rows.VERDICTS - {"wrong"}
    assert all(len(row.text) <= 260 for row in rows.values())


def test_what_families_can_do_is_on_the_page_of_models():
    """Its first table, which benchmarks/models_matrix.py writes."""
    page = (class_rows.PAGE.parent / "models.md").read_text(encoding="utf-8")
    assert set(models_glance.LABELS) == set(families.FAMILIES)
    assert models_glance.glance(list(families.FAMILIES)) in page, "run benchmarks/models_matrix.py"


def test_tables_that_differ_are_told_by_class(tmp_path, monkeypatch):
    page = tmp_path / "classes.md"
    page.write_text("# Every class\n\n## transformers 9.0.0\n\nold\n", encoding="utf-8")
    monkeypatch.setattr(class_rows, "PAGE", page)
    rows = [class_rows.Row("b", "works", "generic: keys"), class_rows.Row("a", "refused", "why: a / b.")]
    class_rows.write("9.1.0", rows)
    assert page.read_text(encoding="utf-8").startswith("# Every class\n\n## transformers 9.1.0\n\n2 classes; 2 take")
    assert page.read_text(encoding="utf-8").endswith("\n\n## transformers 9.0.0\n\nold\n")
    assert class_rows.read("9.1.0") == {row.model_type: row for row in rows}
    assert class_rows.differences("9.1.0", rows) == []
    others = [class_rows.Row("b", "refused", "why."), class_rows.Row("c", "works", "generic: keys")]
    changed, new = class_rows.differences("9.1.0", others)
    assert changed == "b: the page says works, generic: keys; found: refused, why."
    assert new == "c: not on the page; found: works, generic: keys"


def test_a_class_that_crashes_or_hangs_takes_no_other_along():
    """Each name is a program here."""
    names = ["1 + 1", "__import__('os')._exit(7)", "1 / 0", "__import__('time').sleep(60)", "2 + 2"]
    assert dict(results(names, eval, each=5)) == {
        "1 + 1": 2,
        "2 + 2": 4,
        "1 / 0": Stopped("ZeroDivisionError: division by zero"),
        names[1]: Stopped("its process ended with status 7"),
        names[3]: Stopped("no end after 5 seconds"),
    }


def test_what_is_not_reached_in_time_is_named():
    began = time.time()
    found = dict(results(["__import__('time').sleep(60)", "1", "2"], eval, end=began + 2, workers=1))
    assert set(found.values()) == {NotReached()} and len(found) == 3 and time.time() < began + 30
