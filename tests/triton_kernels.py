"""What tests/test_kernels_gpu.py runs with Triton in sight, in a process of its own; prints one JSON object.

python triton_kernels.py interpret 64   # with TRITON_INTERPRET=1: against the plain loops, on the CPU
python triton_kernels.py compile         # without: for the chips of data centres, which needs no GPU
"""

from __future__ import annotations

import json
import sys

import torch
from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fsr.kernels import gpu, reference
from greedy_inputs import KINDS, same, small

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
}


def interpret(seeds):
    """Pictures per kernel, and those whose indices differ from the plain loops'."""
    found = {"pictures": 0, "wrong": []}
    usual = gpu._HISTORY, gpu._TOKENS, gpu._COLUMNS
    for kind in KINDS:
        for seed in range(seeds):
            # Small pictures fill no block: smaller blocks make the inner loops turn more than once.
            gpu._HISTORY, gpu._TOKENS, gpu._COLUMNS = (32, 4, 8) if seed % 2 else usual
            similarity, quality, preset = small(kind, seed, most=14 if seed else 300, longest=12)
            k = preset.shape[1]
            pairs = {
                "farthest_points": (similarity, preset),
                "dpp_map": (similarity, quality, k),
                "coverage": (similarity, quality, k),
            }
            for name, given in pairs.items():
                fast, plain = getattr(gpu, name)(*given), getattr(reference, name)(*given)
                if not (same(fast, plain) if name == "farthest_points" else torch.equal(fast, plain)):
                    found["wrong"].append((name, kind, seed))
            found["pictures"] += len(similarity)
    return found


def compile_all():
    """Bytes of machine code per kernel, width and chip."""
    found = {}
    for n in (576, 4096):
        launch = gpu._one_program(n)
        block = launch["BLOCK"]
        fixed = {
            "_farthest_points": {"BLOCK": block},
            "_dpp_map": {"exhausted": reference.EXHAUSTED, "BLOCK": block, "ROWS": max(1, gpu._HISTORY // block)},
            "_gains": {"TOKENS": gpu._TOKENS, "COLUMNS": gpu._COLUMNS},
            "_take_best": {"BLOCK": block},
        }
        for name, constants in fixed.items():
            kernel = getattr(gpu, name)
            types = {a: "constexpr" if a in constants else _type(a) for a in kernel.arg_names}
            warps = {"num_warps": launch["num_warps"]} if "BLOCK" in constants else {}
            for chip in CHIPS:
                done = build(ASTSource(kernel, types, constants), target=GPUTarget("cuda", chip, 32), options=warps)
                found[f"{name} {n} sm_{chip}"] = len(done.asm["cubin"])
    return found


def _type(name):
    return f"*{POINTERS[name]}" if name in POINTERS else "i32"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(interpret(int(sys.argv[2])) if sys.argv[1] == "interpret" else compile_all()))
