"""What selection costs: the fast path against the plain loops, as ratios within one run.

    OMP_NUM_THREADS=1 python benchmarks/selection.py [--json out.json]

CPU (one thread): Scan by the library against a plain torch loop that recomputes distances at every step, and against
a plain greedy DPP loop; FSR's default rule against the default of 0.1 and against CDPruner, the look-alike mean by
itself; a batch of 32 images against one. What a GPU must show is in `benchmarks/gpu`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from fsr.kernels import cosine, directions, dpp_tokens, farthest_tokens
from fsr.methods import FSR, CDPruner
from fsr.stages.evidence import shared
from fsr.tokens import VisualTokens

OF_0_1 = dict(focus_by="distinct", alpha=3, beta=0.5, max_focus=0.75)
SIZES = [(576, 1024, 64), (2880, 1024, 320)]


def clock(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median milliseconds after one warm-up."""
    return clock_all([run], device, repeats)[0]


def clock_all(runs: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Median milliseconds of each. They take turns in every round, so that all meet the same noise of the machine; a
    call before each measurement warms its own path up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, own in zip(runs, times):
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            own.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(own) for own in times]


def plain_farthest(features: torch.Tensor, k: int) -> torch.Tensor:
    """What a straightforward implementation does: at every step the distance of all tokens to the newest anchor."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    nearest, pick, order = (
        torch.full((len(unit),), -2.0, device=unit.device),
        torch.zeros((), dtype=torch.long, device=unit.device),
        [],
    )
    for _ in range(k):
        order.append(pick)
        nearest = torch.maximum(nearest, unit @ unit[pick])
        nearest[pick] = torch.inf
        pick = nearest.argmin()
    return torch.stack(order)


def plain_dpp(features: torch.Tensor, quality: torch.Tensor, k: int) -> torch.Tensor:
    """Greedy MAP as usually written: kernel matrix, incremental Cholesky, one einsum over the history per step."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    kernel = quality[:, None] * (unit @ unit.T) * quality
    variance, history = kernel.diagonal().clone(), torch.zeros(k, len(unit), device=unit.device)
    order = []
    for step in range(k):
        pick = variance.argmax()
        order.append(pick)
        row = kernel[pick] - torch.einsum("t,tn->n", history[:step, pick], history[:step])
        row = row / variance[pick].clamp_min(1e-12).sqrt()
        history[step] = row
        variance = variance - row.square()
        variance[pick] = -torch.inf
    return torch.stack(order)


def scan_alone(features: torch.Tensor, k: int) -> object:
    """Farthest points through the library, [B, N, D]."""
    preset = torch.full((features.shape[0], k), -1, dtype=torch.long, device=features.device)
    preset[:, 0] = 0
    return farthest_tokens(directions(features), preset)


def dpp_alone(features: torch.Tensor, quality: torch.Tensor, k: int) -> object:
    """DPP through the library, [B, N, D]."""
    return dpp_tokens(directions(features), quality, k)


def rules(
    x: torch.Tensor, saliency: torch.Tensor, relevance: torch.Tensor, k: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """Whole methods on one image, [1, N, D] and scores [1, N], and the mean over look-alikes alone."""
    image = [VisualTokens(x[0], saliency[0], relevance[0])]
    methods = (FSR(keep=k), FSR(keep=k, **OF_0_1), CDPruner(keep=k))
    similarity = cosine(x)
    runs = [*(partial(method, image) for method in methods), partial(shared, similarity, saliency, relevance)]
    new, old, peer, means = clock_all(runs, device, repeats)
    row = {"fsr_ms": new, "fsr_0.1_ms": old, "cdpruner_ms": peer, "look_alikes_ms": means}
    return row | {"fsr/fsr_0.1": new / old, "fsr/cdpruner": new / peer}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    out: dict = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    }
    out |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "repeats": args.repeats, "sizes": []}
    for n, d, k in SIZES:
        x = torch.randn(1, n, d, device=device)
        quality = torch.rand(1, n, device=device)
        runs = [
            partial(scan_alone, x, k),
            partial(plain_farthest, x[0], k),
            partial(plain_dpp, x[0], quality[0], k),
            partial(dpp_alone, x, quality, k),
        ]
        fast, plain, dpp, fast_dpp = clock_all(runs, device, args.repeats)
        same = torch.equal(
            farthest_tokens(directions(x), torch.tensor([[0] + [-1] * (k - 1)], device=device)).order[0],
            plain_farthest(x[0], k),
        )
        row = {"n": n, "d": d, "k": k, "scan_ms": fast, "plain_loop_ms": plain, "plain_dpp_ms": dpp, "dpp_ms": fast_dpp}
        row |= {
            "plain/scan": plain / fast,
            "plain_dpp/scan": dpp / fast,
            "plain_dpp/dpp": dpp / fast_dpp,
            "same_picks": same,
        }
        row |= rules(x, quality, torch.rand(1, n, device=device), k, device, args.repeats)
        out["sizes"].append({a: round(b, 3) if isinstance(b, float) else b for a, b in row.items()})
    method = FSR(keep=64)
    many = [
        VisualTokens(
            torch.randn(576, 1024, device=device), torch.rand(576, device=device), torch.rand(576, device=device)
        )
        for _ in range(32)
    ]
    one, batch = (clock(lambda images=images: method(images), device, args.repeats) for images in (many[:1], many))
    out["fsr"] = {"one_image_ms": round(one, 3), "batch_of_32_ms": round(batch, 3), "batch/one": round(batch / one, 2)}
    for row in out["sizes"]:
        print("  ".join(f"{a} {b}" for a, b in row.items()))
    print(out["fsr"])
    if args.json:
        with open(args.json, "w") as f:
            json.dump(out, f, indent=1)


if __name__ == "__main__":
    main()
