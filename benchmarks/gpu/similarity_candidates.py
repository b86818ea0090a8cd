"""Ways to take all cosines of a picture's tokens, timed side by side: which one the Triton path should use is for the
device to say.

Every candidate is also compared with float64: an index may only change where two cosines differ by less than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fsr.kernels import cosine
from timing import clock, graph_of


def one_product_per_image(features: Tensor) -> Tensor:
    """What the library does today: normalise in float32, one float32 product per image."""
    return cosine(features)


def batched_float32(features: Tensor) -> Tensor:
    """One batched float32 product: a neighbour in the batch may change the order of a sum."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return unit @ unit.mT


def half_inputs(features: Tensor) -> Tensor:
    """Products of the 16-bit features themselves on the tensor cores (exact products, float32 sums), then divided by
    the norms. Only where the features are 16-bit to begin with."""
    batch, n, _ = features.shape
    gram = torch.empty(batch, n, n, device=features.device)
    for x, out in zip(features, gram):
        if features.device.type == "cuda":
            torch.mm(x, x.T, out_dtype=torch.float32, out=out)
        else:
            torch.mm(x.float(), x.float().T, out=out)
    length = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-24).rsqrt()
    return gram * length[:, :, None] * length[:, None, :]


def split_bfloat16(features: Tensor) -> Tensor:
    """Float32 directions as a sum of two bfloat16 parts: three products on the tensor cores for one in float32."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    high = unit.bfloat16()
    low = (unit - high.float()).bfloat16()
    product = lambda a, b: torch.bmm(a, b.mT, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float().mT
    cross = product(high, low)
    return product(high, high) + cross + cross.mT


CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "one float32 product per image (today)": one_product_per_image,
    "one batched float32 product": batched_float32,
    "16-bit inputs, float32 sums": half_inputs,
    "two bfloat16 parts, three products": split_bfloat16,
}


def candidates(features: Tensor, device: torch.device, pretend: bool) -> dict[str, Any]:
    """Milliseconds from a graph and the largest error of a cosine, for features [B, N, D]."""
    first = features[0].double()
    first = first / first.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    exact = first @ first.T
    out: dict[str, Any] = {}
    for name, way in CANDIDATES.items():
        try:
            error = float((way(features)[0].double() - exact).abs().max())
            (ms,) = clock([graph_of(lambda way=way: way(features), device)], device, 3 if pretend else 15)
            out[name] = {"graph_ms": ms, "largest_error": error}
        except (RuntimeError, TypeError) as reason:  # an older torch lacks `out_dtype`: this way is not to be had there
            out[name] = {"error": f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"}
    return out
