"""The Triton kernels against the plain loops: in Triton's interpreter here, on the device where there is one.

Triton stays out of sight of the other tests, because torch would use it as soon as it can be imported: `make test`
installs the wheel into `triton-only/` of the environment, and tests/triton_kernels.py runs with it in processes of its
own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsr import kernels
from fsr.kernels import cpu, reference
from fsr.methods import FSR, get
from fsr.tokens import VisualTokens
from greedy_inputs import KINDS, same, small

HERE = Path(__file__).resolve().parent
WHEEL = Path(sys.prefix) / "triton-only"
INSTALL = f"pip install --no-deps --target {WHEEL} triton==3.7.1"

wheel = pytest.mark.skipif(not (WHEEL / "triton").is_dir(), reason=f"no Triton ({INSTALL})")
cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not (torch.cuda.is_available() and kernels.triton_there()), reason="no CUDA device with Triton"),
]


def told(*arguments, interpret):
    """What tests/triton_kernels.py printed."""
    path = os.pathsep.join([str(WHEEL), str(HERE), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": str(int(interpret))}
    program = [sys.executable, str(HERE / "triton_kernels.py"), *arguments]
    done = subprocess.run(program, env=settings, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@wheel
@pytest.mark.slow
def test_the_same_indices_in_the_interpreter():
    assert told("interpret", "64", interpret=True) == {"pictures": 1024, "wrong": []}


@wheel
def test_few_launches():
    """One selection by FSR. With more images only the matrix products are more, with more picks nothing is."""
    found = told("launches", interpret=True)
    assert found["gpu 1"] <= 95 and found["gpu 5"] <= found["gpu 1"] + 5
    assert found["reference 1"] > 4 * found["gpu 1"]


@wheel
def test_they_compile_without_a_gpu():
    found = told("compile", interpret=False)
    assert len(found) == 9 * 2 * 2 and min(found.values()) > 1000


def test_the_device_chooses(monkeypatch):
    def chosen(device, there):
        monkeypatch.setattr(kernels, "triton_there", lambda: there)
        return kernels._backend(torch.device(device))

    assert chosen("cpu", True) is cpu
    assert chosen("cuda", False) is chosen("mps", True) is chosen("xpu", True) is chosen("meta", True) is reference


class TestOnTheDevice:
    pytestmark = cuda

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_indices(self, kind):
        for seed in range(130):
            similarity, quality, preset = (x.cuda() for x in small(kind, seed, most=600, longest=80))
            k = preset.shape[1]
            assert same(kernels.farthest_points(similarity, preset), reference.farthest_points(similarity, preset))
            fast, plain = (m.heaviest_points(similarity, quality, k, 0.1).rows for m in (kernels, reference))
            assert torch.equal(fast, plain), (kind, seed)
            for name in ("dpp_map", "coverage"):
                fast, plain = (getattr(m, name)(similarity, quality, k) for m in (kernels, reference))
                assert torch.equal(fast, plain), (name, kind, seed)

    @pytest.mark.parametrize("method", [FSR(keep=64), get("cdpruner", keep=64), get("divprune", keep=64)])
    def test_a_graph_replays_the_same_choice(self, method):
        g = torch.Generator("cuda").manual_seed(0)
        x = torch.randn(2, 576, 256, generator=g, device="cuda").bfloat16()
        scores = torch.rand(4, 576, generator=g, device="cuda")
        tokens = VisualTokens(x, scores[:2].clone(), scores[2:].clone())
        method.pick(tokens, 64)  # compiles, and warms the allocator up
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = method.pick(tokens, 64)
        tokens.features.copy_(x.flip(1))
        graph.replay()
        assert torch.equal(captured.rows, method.pick(tokens, 64).rows)
