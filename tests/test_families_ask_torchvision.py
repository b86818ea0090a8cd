"""`fsr ask` and `fsr view` with the real processors of the families that need torchvision, on saved tiny checkpoints.

torchvision stays out of sight of the other tests, because its mere presence switches the image processors: `make test`
installs the wheel into `torchvision-only/` of the environment, and tests/torchvision_families.py runs with it in one
process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
WHEEL = Path(sys.prefix) / "torchvision-only"
INSTALL = f"pip install --no-deps --target {WHEEL} torchvision==0.28.0"
NAMES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-next-video", "llava-onevision", "internvl", "smolvlm", "gemma3"]
NAMES += ["internvl3.5", "qwen2.5-omni", "qwen3-omni", "llama4", "gemma3n"]
NAMES += ["qwen3-vl-moe", "qwen3.5", "qwen3.5-moe", "glm4v", "glm4v-moe", "glm46v", "mistral3", "pixtral", "gemma4"]
KEEP = 3

pytestmark = pytest.mark.skipif(
    not (WHEEL / "torchvision").is_dir(), reason=f"no torchvision for these processors ({INSTALL})"
)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What every family told, from one process that imports everything once."""
    folder = tmp_path_factory.mktemp("torchvision")
    path = os.pathsep.join([str(WHEEL), str(HERE / "shims"), str(HERE), os.environ.get("PYTHONPATH", "")])
    program = [sys.executable, str(HERE / "torchvision_families.py"), str(folder), *NAMES]
    done = subprocess.run(program, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_ask_and_view_a_saved_checkpoint(name, told, feature):
    if name == "smolvlm" and not (find_spec("num2words") or (WHEEL / "num2words").is_dir()):
        assert "Package `num2words` is required" in told[name]["error"]
        pytest.skip("SmolVLM's processor needs num2words (pip install num2words)")
    if name == "gemma3n" and not (find_spec("timm") or (WHEEL / "timm").is_dir()):
        pytest.skip("Gemma 3n's tower needs timm (pip install timm)")
    found = told[name]
    assert "error" not in found, found["error"]
    assert "_pil_" not in found["image_processor"]  # the processor was the one that torchvision makes possible

    whole = json.loads(found["whole"])  # one JSON object and nothing else
    assert whole["keep"] == whole["total"] == found["placeholders"] > KEEP
    assert whole["answer"] and whole["answer"] == whole["answer_unpruned"]
    for relevance in ("none", "embedding"):
        out = json.loads(found[relevance])
        assert out["total"] == found["placeholders"] and out["keep"] == len(set(out["kept_rows"])) == KEEP
        assert (out["relevance"] is None) == (relevance == "none")

        page = Path(found["pages"][relevance]).read_text(encoding="utf-8")
        data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
        (view,) = data["views"]
        assert sorted(map(int, view["order"])) == out["kept_rows"]
        assert {int(row) for row in re.findall(r'<rect [^>]*data-token="(\d+)"', page)} == set(out["kept_rows"])
        assert (data["cases"][0]["relevance"] is None) == (relevance == "none")
        assert ("saliency alone: what fsr ranks by" in page) == (relevance == "none")
        assert ("what the question points at" in page) == (relevance == "embedding")
    if name == "gemma3n":
        assert found["cells"] == 36 and found["tokens"] == 16 and found["gap"] < 1e-6
    feature(name, "fsr ask --model FOLDER")
