"""The second embedded model: it loads on a plain installation, answers at several sizes, keeps exactly K, and its
DeepStack levels follow the kept tokens, which answers about colours show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsr import prune
from fsr.asking.answer import answer
from fsr.asking.chat import chat_inputs
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.cli import main
from fsr.errors import PictureError, UnsupportedModelError, UsageError
from fsr.evaluation.question_set import build
from fsr.evaluation.runner import Runner
from fsr.evaluation.trials import Trial, unpruned
from fsr.methods import FSR, Late, get
from fsr.minivlm.native.build import build_qwen3
from fsr.minivlm.native.language import positions
from fsr.minivlm.native.scenes import draw_native
from fsr.minivlm.native.vision import levels_of, patches_of, tower
from fsr.signals.calibration import load_calibration

FOLDER = files("fsr.minivlm") / "data" / "mini-qwen3"
WHEEL = Path(sys.prefix) / "torchvision-only"


@pytest.fixture(scope="module")
def mini_qwen3():
    return load("mini-qwen3", "cpu")


@pytest.fixture(scope="module")
def runner(mini_qwen3):
    return Runner(*mini_qwen3, build("validation", 3, 96, "native"))


def right(runner, trial, kinds=None):
    (outcomes,) = runner.run([trial])
    items = [runner.questions.items[o.item].question for o in outcomes]
    return float(np.mean([o.answer == q.answer for o, q in zip(outcomes, items) if kinds is None or q.kind in kinds]))


def test_it_is_a_small_real_qwen3_vl(mini_qwen3):
    model, processor = mini_qwen3
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 12e6
    assert model.config.vision_config.deepstack_visual_indexes == [1, 2]
    assert processor.tokenizer.convert_tokens_to_ids("<|vision_start|>") == model.config.vision_start_token_id
    assert (FOLDER / "README.md").is_file() and json.loads((FOLDER / "training.json").read_text())["language"]


def test_it_answers_unseen_questions(runner):
    assert right(runner, unpruned()) >= 0.85


def test_no_sign_without_a_text_tower(runner):
    with pytest.raises(UsageError, match="leave sign at 1"):
        runner.run([Trial("fsr", FSR(keep=0.25), sign=-1)])


def test_half_of_the_tokens_keep_the_answers_about_colours_and_grounds(runner):
    # Colours and grounds come through DeepStack only: rows of the wrong tokens would break them.
    trial = Trial("grid", get("uniform-grid", keep=0.5))
    assert right(runner, trial, {"color", "background"}) >= 0.8


def test_without_deepstack_no_colour_is_known(mini_qwen3, runner):
    model, _ = mini_qwen3
    lost = [m.register_forward_hook(lambda _m, _a, out: out * 0) for m in model.model.visual.deepstack_merger_list]
    try:
        blind = Runner(*mini_qwen3, runner.questions)
        assert right(blind, unpruned(), {"color", "background"}) < 0.6
    finally:
        for hook in lost:
            hook.remove()


@pytest.mark.parametrize("size", [(4, 6), (4, 12), (10, 10)])
def test_exactly_k_at_every_size(mini_qwen3, size):
    model, processor = mini_qwen3
    scene = draw_native(np.random.default_rng(1), size, "test")
    for keep in (1, 20, 0.25):
        result = answer(model, processor, Image.fromarray(scene.image), "is there a dog?", FSR(keep=keep))
        s = result.selection
        assert s.total == 4 * size[0] * size[1]
        assert s.kept == len(set(s.rows.tolist())) == (keep if isinstance(keep, int) else round(keep * s.total))
        assert result.report.positions == "original" and result.report.length_after == s.kept + 8


def test_command_line(capsys, tmp_path):
    words = ["what color is the dog?", "--model", "mini-qwen3", "--keep", "48", "--relevance", "embedding"]
    assert main(["ask", *words, "--compare", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["n_tokens"] == 192 and told["keep"] == 48 and told["answer_unpruned"] == "orange"
    page = tmp_path / "report.html"
    assert main(["view", *words, "--out", str(page)]) == 0
    assert page.read_text(encoding="utf-8").count("data-token=") >= 48
    capsys.readouterr()
    words = ["--model", "mini-qwen3", "--methods", "grid", "--keep", "0.25", "--questions", "16"]
    assert main(["compare", *words, "--relevance", "embedding", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["questions"]["scenes"] == "native" and len(told["results"]) == 2 and told["relevance"] == "embedding"


def test_its_own_calibration_is_the_default(mini_qwen3, capsys):
    """`fsr calibrate --model mini-qwen3` wrote the file; methods that cannot do without relevance run."""
    found = load_calibration(FOLDER / "relevance.json")
    assert found.best == "embedding, strongest word" and found.pointing[found.best] > 0.9 > found.pointing["embedding"]
    picture = bundled_scene(1, "mini-qwen3")
    for method in (FSR(keep=12), get("cdpruner", keep=12)):
        report = answer(*mini_qwen3, picture, "what color is the dog?", method).report
        assert report.relevance == found.best and not report.notes
    words = ["--model", "mini-qwen3", "--questions", "16", "--keep", "0.25", "--json", "--methods"]
    assert main(["compare", *words, "all,fsr", "--relevance", "none"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["relevance"] == "none"
    left = {line.split(":")[0].split()[-1] for line in said.err.splitlines() if line.startswith("left out")}
    assert {"relevance", "cdpruner", "trim", "pyramiddrop", "sparsevlm"} <= left and "fastv" not in left
    assert main(["compare", *words, "relevance", "--relevance", "none"]) == 2  # asked for by name
    assert "--relevance" in capsys.readouterr().err


def test_late_drops_follow_deepstack(mini_qwen3):
    """Behind the layers that add DeepStack's features FSR's order holds and positions stay; before them: refused."""
    model, processor = mini_qwen3
    inputs = chat_inputs(processor, bundled_scene(1, "mini-qwen3"), "what color is the dog?")
    with prune(model, FSR(keep=48) | Late({2: 24, 3: 0}), processor=processor) as pruned:
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == "orange"
    assert pruned.last.positions == "original"
    first = pruned.last.selections[0].order.argsort()[:24].sort().values
    assert [rows.tolist() for d in pruned.last.in_llm.drops for rows in d.rows] == [first.tolist(), []]
    with pytest.raises(UnsupportedModelError, match="in front of layer 2 or later"):
        prune(model, FSR(keep=48) | Late({1: 24}), processor=processor)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (400, 400), (64, 200), (417, 96)])
def test_a_picture_of_an_unknown_size_is_refused_in_one_line(mini_qwen3, width, height):
    _, processor = mini_qwen3
    with pytest.raises(PictureError, match=f"{width} x {height} pixels.*resize or crop") as told:
        chat_inputs(processor, Image.new("RGB", (width, height)), "is there a dog?")
    assert "\n" not in str(told.value)


def test_videos_and_missing_weights_are_refused(mini_qwen3, monkeypatch, tmp_path):
    _, processor = mini_qwen3
    with pytest.raises(UsageError, match="still pictures"):
        processor(text=["<bos>"], videos=[np.zeros((2, 3, 96, 96))])
    monkeypatch.setattr("fsr.asking.load.files", lambda _: tmp_path)
    with pytest.raises(UsageError, match="fsr train --model mini-qwen3"):
        load("mini-qwen3", "cpu")


def test_training_sees_what_the_stock_classes_see(mini_qwen3):
    """The same pixels, positions and features as through the processor and the model's own forward."""
    model, processor = mini_qwen3
    picture = bundled_scene(3, "mini-qwen3")
    grid = (picture.height // 16, picture.width // 16)
    inputs = chat_inputs(processor, picture, "is there a dog ?")
    patches = patches_of(np.asarray(picture)[None])
    assert torch.equal(inputs["pixel_values"].view(-1, 4, 3, 2, 64)[:, :, :, 1].reshape(patches[0].shape), patches[0])
    place, _ = model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"])
    assert torch.equal(place, positions(grid, torch.arange(grid[0] * grid[1])[None], 1)[..., : place.shape[-1]])
    visual = model.model.visual
    with torch.no_grad():
        stock = visual(inputs["pixel_values"], inputs["image_grid_thw"])
        levels = levels_of(visual, tower(visual, patches, grid))
    for theirs, ours in zip([stock.pooler_output, *stock.deepstack_features], levels):
        assert torch.allclose(theirs, ours[0], atol=1e-4)


def test_all_tokens_through_prune_give_the_same_logits(mini_qwen3):
    model, processor = mini_qwen3
    inputs = chat_inputs(processor, bundled_scene(1, "mini-qwen3"), "what does the sign say?")
    with torch.no_grad():
        plain = model(**inputs).logits
        with prune(model, get("uniform-grid", keep=1.0)):
            assert torch.equal(model(**inputs).logits, plain)


def test_the_architecture_in_code_is_the_shipped_one(mini_qwen3):
    shipped = mini_qwen3[0].state_dict()
    fresh = build_qwen3().state_dict()
    assert {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in shipped.items()}


@pytest.mark.skipif(not (WHEEL / "torchvision").is_dir(), reason="the stock processor needs torchvision")
def test_the_stock_processor_reads_the_same_folder():
    """What engines load: Transformers' own class, with torchvision; in a process of its own, see
    tests/test_families_ask_torchvision.py."""
    program = (
        "import sys, torchvision_schemas, torch, transformers\n"
        "from fsr.asking.chat import chat_inputs\n"
        "from fsr.asking.images import bundled_scene\n"
        "from fsr.minivlm.native.processor import StillsProcessor\n"
        "stock = transformers.AutoProcessor.from_pretrained(sys.argv[1])\n"
        "assert type(stock) is transformers.Qwen3VLProcessor, type(stock)\n"
        "own, picture = StillsProcessor.from_pretrained(sys.argv[1]), bundled_scene(3, 'mini-qwen3')\n"
        "a, b = (chat_inputs(p, picture, 'what color is the dog?') for p in (stock, own))\n"
        "assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)\n"
    )
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(WHEEL), str(here / "shims"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, str(FOLDER)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
