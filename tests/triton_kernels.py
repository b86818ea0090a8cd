"""What tests/test_kernels_gpu.py runs with Triton in sight, in a process of its own; prints one JSON object.

python triton_kernels.py interpret 64   # with TRITON_INTERPRET=1: against the plain loops, on the CPU
python triton_kernels.py compile         # without: for the chips of data centres, which needs no GPU
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import GridExecutor

from fsr import kernels
from fsr.kernels import gpu, gpu_refine, gpu_similarity, reference
from fsr.kernels import similarity as plain_similarity
from fsr.methods import FSR
from fsr.stages import evidence
from fsr.tokens import VisualTokens
from greedy_inputs import KINDS, number, same, small, tokens

CHIPS = (80, 90)
POINTERS = {
    "similarity": "fp32",
    "quality": "fp64",
    "weight": "fp64",
    "factor": "fp64",
    "preset": "i64",
    "order": "i64",
    "radius": "fp32",
    "rest": "fp32",
    "best": "fp32",
    "gain": "fp32",
    "taken": "i8",
    "features": "bf16",
    "out": "bf16",
    "rows": "i64",
    "scanned": "i8",
    "sources": "i64",
    "nearest": "fp32",
    "into": "i64",
    "own": "fp32",
    "units": "fp32",
    "cosines": "fp32",
}
# The same name for another type.
EXCEPTIONS = {("_absorb", "weight"): "fp32", ("_heaviest_points", "weight"): "fp32"}


def interpret(seeds):
    """Pictures per kernel, and those whose indices differ from the plain loops'."""
    found = {"pictures": 0, "wrong": []}
    usual = gpu._HISTORY, gpu._TOKENS, gpu._COLUMNS
    for kind in KINDS:
        for seed in range(seeds):
            # Small pictures fill no block: smaller blocks make the inner loops turn more than once.
            gpu._HISTORY, gpu._TOKENS, gpu._COLUMNS = (32, 8, 8) if seed % 2 else usual
            similarity, quality, preset = small(kind, seed, most=12 if seed else 300, longest=8)
            k = preset.shape[1]
            pairs = {
                "farthest_points": (similarity, preset),
                "heaviest_points": (similarity, quality, k, (0.0, 0.1, 0.5)[seed % 3]),
                "dpp_map": (similarity, quality, k),
                "coverage": (similarity, quality, k),
            }
            for name, given in pairs.items():
                fast, plain = getattr(gpu, name)(*given), getattr(reference, name)(*given)
                if name == "heaviest_points":
                    fast, plain = fast.rows, plain.rows
                if not (same(fast, plain) if name == "farthest_points" else torch.equal(fast, plain)):
                    found["wrong"].append((name, kind, seed))
            if seed < 16:
                gpu_refine._ANCHORS, gpu_refine._TOKENS = (4, 8) if seed % 2 else (16, 64)
                gpu_similarity._COLUMNS = 8 if seed % 2 else 1024
                found["wrong"] += [(name, kind, seed) for name in refined(similarity, preset, quality)]
                if not close_directions(kind, seed):
                    found["wrong"].append(("directions", kind, seed))
            found["pictures"] += len(similarity)
    return found


def close_directions(kind, seed):
    """Whether directions and cosines are the plain ones but for rounding, and equal tokens count as equal."""
    g = torch.Generator().manual_seed(seed)
    x = tokens(kind, number(1, 20, g), number(1, 23, g), g).bfloat16()
    plain, fast = (m.directions(x) for m in (reference, gpu))
    ours, theirs = gpu.cosines_of(fast), plain_similarity.cosines_of(plain)
    equal = (x[:, :, None] == x[:, None]).all(-1) & (x.abs().sum(-1) > 0)[:, :, None]
    near = torch.allclose(plain, fast, atol=1e-6) and torch.allclose(ours, theirs, atol=1e-6)
    return near and bool((ours[equal] == 1).all())


def refined(similarity, preset, quality):
    """Names of the two kernels of Refine whose results differ."""
    order, n = reference.farthest_points(similarity, preset).order, similarity.shape[1]
    scanned = preset < 0
    plain, fast = (m.nearest_anchor(None, similarity, order, scanned) for m in (reference, gpu))
    known = ~plain[0].isinf()
    if not (torch.equal(plain[0], fast[0]) and torch.equal(plain[1][known], fast[1][known])):
        yield "nearest_anchor"
    most = min(order.shape[1], n - order.shape[1])
    if most == 0:
        return
    sources = plain[0].argsort(dim=1, descending=True, stable=True)[:, :most]
    weight = quality.gather(1, sources) * scanned.any(dim=1, keepdim=True)
    given = (order, sources, plain[1].gather(1, sources), weight, quality.gather(1, order))
    for dtype in (torch.float32, torch.bfloat16):
        features = similarity[:, :, : max(1, n // 2)].to(dtype).contiguous()
        plain_means, fast_means = (m.absorb(features, *given) for m in (reference, gpu))
        close = 1e-6 if dtype == torch.float32 else 2**-7
        if not torch.allclose(plain_means.float(), fast_means.float(), atol=close, rtol=close):
            yield "absorb"
        untouched = [features[b, order[b, j]].equal(fast_means[b, j]) for b, j in alone(given)]
        if not all(untouched):
            yield "absorb"


def alone(given):
    """Image and place of each kept token that absorbs no weight."""
    order, _, into, weight, _ = given
    taken = torch.zeros(order.shape).scatter_add(1, into, weight)
    return (taken == 0).nonzero().tolist()


class Launches(TorchDispatchMode):
    """Counts operators that start a kernel, by name: neither views nor bare allocations."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in str(func):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def launches():
    """Kernels of `FSR.pick` with the Triton kernels and with the plain loops, for one image and for five."""
    found = {}
    # The interpreter's tensors are on the CPU, where look-alike means go block by block; those on a device do not.
    evidence.shared = lambda similarity, *scores: evidence._averages(similarity, [s.float() for s in scores])
    for backend in (gpu, reference):
        kernels._backend = lambda device, chosen=backend: chosen
        for images in (1, 5):
            g = torch.Generator().manual_seed(0)
            scores = torch.rand(2, images, 40, generator=g)
            batch = VisualTokens(torch.randn(images, 40, 24, generator=g).bfloat16(), scores[0], scores[1])
            with Launches() as counted:
                started = triton_launches(lambda batch=batch: FSR(keep=16).pick(batch, 16), counted)
            found[f"{backend.__name__.rpartition('.')[2]} {images}"] = counted.found.total() + started
    return found


def triton_launches(run, counted):
    """Triton launches of `run`. What the interpreter does inside of one with torch is taken out of `counted`."""
    started = 0
    inner = GridExecutor.__call__

    def once(self, *args, **kwargs):
        nonlocal started
        started += 1
        before = counted.found.copy()
        inner(self, *args, **kwargs)
        counted.found = before

    GridExecutor.__call__ = once
    try:
        run()
    finally:
        GridExecutor.__call__ = inner
    return started


def compile_all():
    """Bytes of machine code per kernel, width and chip."""
    found = {}
    for n in (576, 4096):
        launch = gpu._one_program(n)
        block = launch["BLOCK"]
        fixed = {
            "_farthest_points": {"BLOCK": block},
            "_heaviest_points": {"left": 0.1, "BLOCK": block},
            "_dpp_map": {"exhausted": reference.EXHAUSTED, "BLOCK": block, "ROWS": max(1, gpu._HISTORY // block)},
            "_gains": {"TOKENS": gpu._TOKENS, "COLUMNS": gpu._COLUMNS},
            "_take_best": {"BLOCK": block},
            "_directions": {"COLUMNS": gpu_similarity._COLUMNS},
            "_settle": {"same": 1 - plain_similarity.DUPLICATE, "BLOCK": gpu_similarity._SETTLED},
            "_nearest_anchor": {"ANCHORS": gpu_refine._ANCHORS, "TOKENS": gpu_refine._TOKENS},
            "_absorb": {"COLUMNS": gpu_refine._COLUMNS},
        }
        for name, constants in fixed.items():
            kernel = next(getattr(m, name) for m in (gpu, gpu_refine, gpu_similarity) if hasattr(m, name))
            types = {a: "constexpr" if a in constants else _type(name, a) for a in kernel.arg_names}
            warps = {"num_warps": launch["num_warps"]} if "BLOCK" in constants else {}
            for chip in CHIPS:
                done = build(ASTSource(kernel, types, constants), target=GPUTarget("cuda", chip, 32), options=warps)
                found[f"{name} {n} sm_{chip}"] = len(done.asm["cubin"])
    return found


def _type(kernel, name):
    kind = EXCEPTIONS.get((kernel, name), POINTERS.get(name))
    return f"*{kind}" if kind else "i32"


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = {"interpret": lambda: interpret(int(sys.argv[2])), "launches": launches, "compile": compile_all}
    print(json.dumps(what[sys.argv[1]]()))
