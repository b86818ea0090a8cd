"""Stage 2, Scan: global context by Conditional Context Sampling (Eq. 5 of arXiv 2602.05809).

Starting from the focus tokens as fixed centres, take again and again the token whose nearest chosen token is farthest:
farthest-point sampling, greedy for the k-centre problem.

What is guaranteed. Let R be the largest chordal distance |u - v| of unit vectors from a token to its nearest chosen
one, and R* the least that any choice of K_S tokens beside the same Focus reaches. Then R <= 2 R*: the chordal distance
is a metric, and the greedy order is the same for it and for 1 - cos = chord^2 / 2. Under 1 - cos, no metric, the factor
is therefore 4; the paper's Eq. 7 says 2, which is
false: unit vectors at 0 (fixed), 1, 1.05 and 1.1 rad with K_S = 1 give 3.998.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fsr.kernels import farthest_points, farthest_tokens
from fsr.stages.focus import Focus

__all__ = ["Scan", "scan"]


class Scan(NamedTuple):
    """Focus and Scan together.

    rows: long [B, K], focus tokens and then scanned ones, in the order of choice.
    scanned: bool [B, K], true where `rows` came from Scan.
    radii: float32 [B, K], covering radius (largest 1 - cos to the nearest chosen token) before each scan step, NaN at
        focus steps. With nothing chosen yet it is 2, the largest value of 1 - cos.
    radius: float32 [B], covering radius of all tokens in the end (0 if all were chosen).
    similarity: float32 [B, N, N] or None, the cosines of all pairs where Scan made them: Refine needs some again.
    """

    rows: Tensor
    scanned: Tensor
    radii: Tensor
    radius: Tensor
    similarity: Tensor | None = None


def scan(units: Tensor, chosen: Focus, saliency: Tensor) -> Scan:
    """Fill the budget that Focus left over.

    Args:
        units: float32 [B, N, D], `directions` of the tokens.
        chosen: the Focus set; K is the width of its `rows`.
        saliency: [B, N]; where Focus is empty, Scan starts from the highest (ties to the lowest index).
    """
    step = torch.arange(chosen.rows.shape[1], device=units.device)
    scanned = step >= chosen.size[:, None]
    start = scanned & (step == 0)
    preset = torch.where(start, saliency.argmax(dim=-1, keepdim=True), chosen.rows)
    known = chosen.similarity
    found = farthest_tokens(units, preset) if known is None else farthest_points(known, preset)
    rows, radii, rest, similarity = found
    return Scan(rows, scanned, radii.masked_fill_(start, 2.0), rest, similarity)
