"""A few small selections by every Triton kernel on the device: what compute-sanitizer watches (it makes them 100 times
slower, so they are few)."""

from __future__ import annotations

import torch

from fsr.methods import FSR, get
from fsr.tokens import VisualTokens


def main() -> None:
    g = torch.Generator().manual_seed(0)
    for n, k in ((7, 3), (96, 16), (300, 24)):
        x = torch.randn(2, n, 80, generator=g).bfloat16().cuda()
        scores = torch.rand(4, n, generator=g).cuda()
        tokens = VisualTokens(x, scores[:2].clone(), scores[2:].clone())
        for method in (FSR(keep=k), *(get(name, keep=k) for name in ("fsr-paper", "cdpruner", "divprune", "scope"))):
            method.pick(tokens, k)
    torch.cuda.synchronize()
    print("selected")


if __name__ == "__main__":
    main()
