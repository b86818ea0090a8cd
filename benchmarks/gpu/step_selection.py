"""Step 2: one selection on the device, called from Python and replayed from a CUDA graph.

FSR, the paper's FSR, CDPruner, DivPrune and farthest points; CDPruner also as a plain loop, as it is usually written.
Beside each time stands the floor: the bytes that any implementation must move over the bandwidth measured here, and the
operations that it must do over the rate measured here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fsr.methods import FSR, get
from fsr.tokens import VisualTokens
from part import Parts
from similarity_candidates import candidates
from timing import about, best_rates, clock, graph_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from selection import plain_dpp

METHODS = ("fsr", "fsr-paper", "cdpruner", "divprune", "farthest")


@dataclass(frozen=True)
class Case:
    """`images` stacks of `n` tokens (tiles count as images), `k` kept of each."""

    name: str
    images: int
    n: int
    k: int
    width: int = 4096


CASES = (
    Case("one picture, 64 of 576", 1, 576, 64),
    Case("five tiles, 128 of 576 each", 5, 576, 128),
    Case("five tiles, 192 of 576 each", 5, 576, 192),
    Case("32 pictures, 64 of 576 each", 32, 576, 64),
    Case("one picture, 320 of 2880", 1, 2880, 320),
    Case("4K screenshot, 1024 of 16384", 1, 16384, 1024),
)
TINY = tuple(Case(c.name, min(c.images, 4), max(12, c.n // 48), max(3, c.k // 48), 32) for c in CASES)


def tokens_of(case: Case, device: torch.device) -> VisualTokens:
    """Random features in bfloat16 and random scores, [images, n]."""
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(case.images, case.n, case.width, generator=g, device=device, dtype=torch.bfloat16)
    saliency, relevance = torch.rand(2, case.images, case.n, generator=g, device=device)
    return VisualTokens(x, saliency, relevance)


def floor_ms(case: Case, rates: dict[str, float]) -> dict[str, float]:
    """Least milliseconds: read all features once and write the kept ones; K rows of N dot products in float32."""
    moved = 2 * case.images * case.width * (case.n + case.k)
    done = 2 * case.images * case.n * case.k * case.width
    return {
        "bytes_ms": moved / rates["copy_GB_per_s"] / 1e6,
        "operations_ms": done / rates["float32_TFLOP_per_s"] / 1e9,
    }


def measure(case: Case, device: torch.device, rates: dict[str, float], pretend: bool) -> dict[str, Any]:
    """Milliseconds of every method for one case."""
    tokens = tokens_of(case, device)
    floor = floor_ms(case, rates)
    out: dict[str, Any] = {"images": case.images, "n": case.n, "k": case.k, "width": case.width, "floor": floor}
    repeats = 3 if pretend else 7 if case.n > 4000 else 15
    for name in METHODS:
        pick = partial(get(name, keep=case.k).pick, tokens, case.k)
        graph_ms, called_ms = clock([graph_of(pick, device), pick], device, repeats)
        out[name] = {"graph_ms": graph_ms, "called_ms": called_ms, "graph/floor": graph_ms / max(floor.values())}
    if case.n <= 4000:
        quality = tokens.relevance
        loop = lambda: [plain_dpp(x, q, case.k) for x, q in zip(tokens.features, quality)]
        out["cdpruner as a plain loop"] = {"called_ms": clock([loop], device, 1 if case.images > 5 else 3)[0]}
    return out


def whole_call(device: torch.device, case: Case) -> dict[str, float]:
    """FSR as the pipeline calls it: checks, certificate and what travels to the host included."""
    tokens = tokens_of(case, device)
    unit = VisualTokens(tokens.features[0], tokens.saliency[0], tokens.relevance[0])
    return {"ms": clock([lambda: FSR(keep=case.k)([unit])], device, 9)[0]}


def main() -> int:
    parts = Parts(__doc__ or "")
    parts.run("about", lambda: about(parts.device))
    rates = parts.run("rates", lambda: best_rates(parts.device, parts.pretend))
    for case in TINY if parts.pretend else CASES:
        if rates is not None:
            parts.run(case.name, lambda case=case: measure(case, parts.device, rates, parts.pretend))
    first = (TINY if parts.pretend else CASES)[0]
    parts.run("whole call of FSR, one picture", lambda: whole_call(parts.device, first))
    for case in [c for c in (TINY if parts.pretend else CASES) if c.k in (first.k,)]:
        parts.run(
            f"ways to take cosines: {case.name}",
            lambda case=case: candidates(tokens_of(case, parts.device).features, parts.device, parts.pretend),
        )
    return int(parts.failed)


if __name__ == "__main__":
    sys.exit(main())
