"""Clocks for a device: medians, CUDA graphs, and what the device can do at best (bytes and operations per second).

On a CPU (`--pretend`) a graph is the call itself: the steps run through the very same code.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fsr.device import synchronise

Run = Callable[[], Any]


def clock(runs: Sequence[Run], device: torch.device, repeats: int) -> list[float]:
    """Median milliseconds of each run. They take turns in every round, so that all meet the same noise; CUDA runs are
    timed by events on the device, the others by the wall clock."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for run, own in zip(runs, times):
            own.append(_once(run, device))
    return [statistics.median(own) for own in times]


def _once(run: Run, device: torch.device) -> float:
    synchronise(device)
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def graph_of(run: Run, device: torch.device) -> Run:
    """`run` captured once as a CUDA graph: calling the result replays it. The first calls compile, before capturing."""
    if device.type != "cuda":
        return run
    for _ in range(2):
        run()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def best_rates(device: torch.device, pretend: bool) -> dict[str, float]:
    """What the floor of a computation is made of: GB/s of a large copy (read plus written), TFLOP/s of a large matrix
    product in bfloat16 and in float32 (as torch computes it by default: no TF32)."""
    n = 256 if pretend else 8192
    source = torch.empty(n * n * (1 if pretend else 8), device=device)
    target = torch.empty_like(source)
    (copy_ms,) = clock([lambda: target.copy_(source)], device, 10)
    out = {"copy_GB_per_s": 2 * source.numel() * 4 / copy_ms / 1e6}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(n, n, device=device, dtype=dtype)
        (ms,) = clock([lambda a=a: a @ a], device, 5)
        out[f"{str(dtype).removeprefix('torch.')}_TFLOP_per_s"] = 2 * n**3 / ms / 1e9
    return out


def about(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a number belongs to."""
    import transformers

    import fsr
    from fsr.kernels import triton_there

    triton = "absent"
    if triton_there():
        import triton as there

        triton = there.__version__
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "memory_GiB": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        if device.type == "cuda"
        else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "transformers": transformers.__version__,
        "fsr": fsr.__version__,
    }
