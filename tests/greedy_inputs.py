"""Random and degenerate inputs of the greedy kernels, for the tests of every implementation."""

from __future__ import annotations

import torch

from fsr.kernels import cosine

KINDS = ["gauss", "clusters", "duplicates", "constant", "zeros", "holes", "line", "exact"]


def tokens(kind, n, d, g):
    """Two images [2, n, d]."""
    x = torch.randn(2, n, d, generator=g)
    if kind == "clusters":
        x = x[:, torch.arange(n) % max(1, n // 5)] + 0.05 * torch.randn(2, n, d, generator=g)
    elif kind == "duplicates":
        x = x[:, torch.randint(0, max(1, n // 3), (n,), generator=g)]
    elif kind == "constant":
        x = torch.ones(2, n, d)
    elif kind == "zeros":
        x = torch.zeros(2, n, d)
    elif kind == "holes":
        x[:, torch.rand(n, generator=g) < 0.5] = 0
    elif kind == "line":
        x = torch.linspace(-1, 1, n)[None, :, None] * torch.ones(2, n, d)
    elif kind == "exact":  # four entries of +-1: every cosine is a multiple of 1/4 in any order of summation
        x = torch.zeros(2, n, 12)
        where = torch.rand(2, n, 12, generator=g).argsort(-1)[..., :4]
        x.scatter_(2, where, torch.randint(0, 2, (2, n, 4), generator=g) * 2.0 - 1)
    return x


def number(low, high, g):
    """One of low, ..., high."""
    return int(torch.randint(low, high + 1, (1,), generator=g))


def anchors(n, k, g):
    """Ragged sets of anchors for two images, long [2, k]: some rows, then -1."""
    preset = torch.full((2, k), -1)
    for b in range(2):
        fixed = number(0, k, g)
        preset[b, :fixed] = torch.randperm(n, generator=g)[:fixed]
    return preset


def small(kind, seed, most=49, longest=49):
    """Similarity [2, n, n], quality [2, n], anchors [2, k] of up to `most` tokens and `longest` picks."""
    g = torch.Generator().manual_seed(seed)
    n, d = number(1, most, g), number(1, 23, g)
    quality = torch.rand(2, n, generator=g)
    if kind == "constant":
        quality = torch.ones(2, n)
    elif kind == "exact":
        quality = (3 * quality).round()  # many equal ones, and zeros
    similarity = cosine(tokens(kind, n, d, g))
    return similarity, quality, anchors(n, number(1, min(n, longest), g), g)


def same(one, other):
    """Whether order, radius and rest of two results are equal, NaN included."""
    return all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(one[:3], other[:3]))
