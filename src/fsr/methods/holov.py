"""HoloV: "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention", arXiv
2510.02912 (NeurIPS 2025).

The sequence is cut into P runs; each run gets a share of the budget by attention and inner variety, and inside a run
attention alone decides:

    S = f f^T without diagonal, f = z / (|z| + eps)
    mu_i = sum_j S_ij / (n - 1);  var_i = sum_j (S_ij - mu_i)^2 / (n - 1)
    att = 1000 a;  var' = var * mean |att| / (mean |var| + eps);  score = mean_i (att + 0.09 var')
    w = score / sum of scores;  floor(w K) tokens each, what is left one each to the runs of largest w;  inside:
        largest a

Prunes: after the projector. Needs: saliency a. Cost: P Gram matrices of (N / P)^2 D, one step. P = 16 and 0.09 are
the authors' constants. Differs from the authors' code:
- a run given more than its tokens passes the surplus on to the others; theirs fills up with rows of zeros.
  `holov_indices` is their computation, in their order (run by run, by falling attention, not raster), with -1 for a
  row of zeros;
- float32 (theirs: attention cast to float16 first); equal scores go to the lowest row; P is at most N.
Known oddities that belong to the method as released and stay: the runs are 1-D pieces of the sequence, not squares;
the zeroed diagonal adds mu^2 to var; a run of one token is scored 1000 times lower. The budget is global over tiles:
`per="image"`. Their Qwen code reads attention in window order for features in raster order; here the adapter has
put both in raster order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.methods.base import Method, Picks, register
from fsr.methods.quotas import apportion, rank_in_group, take_quota
from fsr.tokens import Stage, VisualTokens

__all__ = ["HoloV", "holov_indices", "run_scores", "runs"]

RUNS = 16
VARIETY = 0.09
EPS = 1e-6


def runs(n: int, p: int = RUNS) -> list[int]:
    """Lengths of p consecutive runs: n // p, the first n % p one longer."""
    p = min(p, n)
    return [n // p + (i < n % p) for i in range(p)]


def run_scores(features: Tensor, saliency: Tensor, lengths: list[int]) -> Tensor:
    """Score of each run. features: [B, N, D], saliency: [B, N]; result float32 [B, P]."""
    scores = []
    for z, a in zip(features.float().split(lengths, dim=1), saliency.float().split(lengths, dim=1)):
        n = z.shape[1]
        if n == 1:
            scores.append(a[:, 0])
            continue
        f = z / (z.norm(dim=-1, keepdim=True) + EPS)
        s = torch.stack([x @ x.T for x in f])
        s = s.masked_fill(torch.eye(n, dtype=torch.bool, device=s.device), 0.0)
        mean = s.sum(-1, keepdim=True) / (n - 1)
        var = (s - mean).square().sum(-1) / (n - 1)
        att = 1000 * a
        var = var * att.abs().mean(-1, keepdim=True) / (var.abs().mean(-1, keepdim=True) + EPS)
        scores.append((att + VARIETY * var).mean(-1))
    return torch.stack(scores, dim=-1)


def _run_of(lengths: list[int], like: Tensor) -> Tensor:
    of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return of.to(like.device).expand_as(like)


def holov_indices(features: Tensor, saliency: Tensor, k: int, p: int = RUNS) -> tuple[Tensor, Tensor]:
    """The authors' result: rows long [B, k] in output order, -1 where theirs is a row of zeros, and the allocation
    long [B, P]."""
    lengths = runs(saliency.shape[-1], p)
    room = torch.tensor(lengths, device=saliency.device)
    given = apportion(run_scores(features, saliency, lengths), k, torch.full_like(room, k))
    run = _run_of(lengths, saliency)
    rank, n = rank_in_group(saliency, run), saliency.shape[-1]
    # A run that keeps everything keeps its raster order.
    place = torch.where((given >= room).gather(-1, run), torch.arange(n, device=run.device), rank)
    key = torch.where(rank < given.gather(-1, run), run * n + place, len(lengths) * n)
    rows = key.argsort(dim=-1, stable=True)[:, :k]
    return torch.where(key.gather(-1, rows) < len(lengths) * n, rows, -1), given


@register
@dataclass(frozen=True)
class HoloV(Method):
    """A budget for each run of tokens, attention inside it. Options: those of `Method`."""

    name = "holov"
    paper = "arXiv 2510.02912"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"saliency"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """See `Method.pick`."""
        saliency = self.need(tokens, "saliency").float()
        lengths = runs(tokens.count)
        room = torch.tensor(lengths, device=saliency.device)
        quota = apportion(run_scores(tokens.features, saliency, lengths), k, room)
        rows = take_quota(saliency, _run_of(lengths, saliency), quota)
        return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.FOCUS)), priority=saliency)
