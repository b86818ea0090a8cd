"""The fast path against the plain loops: the same indices, on random and on degenerate input; ties to the lowest."""

import numpy as np
import pytest
import torch

from fsr.kernels import (
    cosine,
    cosine_rows,
    cpu,
    directions,
    dpp_tokens,
    farthest_tokens,
    heaviest_tokens,
    lazy,
    reference,
)
from fsr.kernels.similarity import settle
from greedy_inputs import KINDS, anchors, number, same, small, tokens


@pytest.mark.parametrize("kind", KINDS)
def test_farthest_points(kind):
    for seed in range(180):
        similarity, _, preset = small(kind, seed)
        fast, plain = cpu.farthest_points(similarity, preset), reference.farthest_points(similarity, preset)
        assert same(fast, plain), (kind, seed)
        assert all(len(set(row)) == preset.shape[1] for row in fast.order.tolist())


def many(kind, seed):
    """Two images, fewer picks than half of their tokens, and ragged sets of anchors."""
    g = torch.Generator().manual_seed(seed)
    n, d = number(3, 219, g), number(1, 47, g)
    return tokens(kind, n, d, g), anchors(n, number(1, (n - 1) // 2, g), g)


@pytest.mark.parametrize("kind", KINDS)
def test_lazy_farthest_points(kind, monkeypatch):
    monkeypatch.setattr(cpu, "_SMALL", 0)
    again = []
    reopen = lazy._Open._reopen
    monkeypatch.setattr(lazy._Open, "_reopen", lambda self, *given: (again.append(1), reopen(self, *given)))
    for seed in range(150):
        x, preset = many(kind, seed)
        n = x.shape[1]
        fast = farthest_tokens(directions(x), preset)
        for b in range(2):  # the plain loop on the cosines that the lazy one takes, but on all of them
            units, fixed = lazy.padded(directions(x[b : b + 1])[0]), preset[b][preset[b] >= 0].numpy()
            whole = np.stack([lazy.row(units, units[i]) for i in range(n)])
            whole[fixed] = lazy.first_cosines(units, fixed)
            plain = reference.farthest_points(torch.from_numpy(whole[None, :, :n]), preset[b : b + 1])
            one = farthest_tokens(directions(x[b : b + 1]), preset[b : b + 1])
            assert same(one, plain), (kind, seed, b)
            assert same(one, [part[b : b + 1] for part in fast[:3]])
        plain = reference.farthest_points(cosine(x), preset)  # the same cosines, but for the last bit
        if kind in ("gauss", "constant"):
            assert torch.equal(fast.order, plain.order), (kind, seed)
            for a, b in zip(fast[:3], plain[:3]):
                torch.testing.assert_close(a, b, equal_nan=True, atol=1e-6, rtol=0)
        elif kind == "exact":
            assert same(fast, plain), seed
    if kind in ("gauss", "duplicates", "exact"):
        assert len(again) > 20  # closed tokens did come back into play


@pytest.mark.parametrize("kind", KINDS)
def test_dpp_and_coverage(kind):
    for seed in range(180):
        similarity, quality, preset = small(kind, seed)
        k = preset.shape[1]
        for name in ("dpp_map", "coverage"):
            fast, plain = getattr(cpu, name)(similarity, quality, k), getattr(reference, name)(similarity, quality, k)
            assert torch.equal(fast, plain), (name, kind, seed)
            assert all(len(set(row)) == k for row in fast.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_dpp_of_tokens(kind, monkeypatch):
    """Without the matrix: the plain loop on the cosines that it takes, but on all of them."""
    monkeypatch.setattr(cpu, "_SMALL", 0)
    for seed in range(150):
        x, preset = many(kind, seed)
        n, k = x.shape[1], preset.shape[1]
        quality = torch.rand(2, n, generator=torch.Generator().manual_seed(seed))
        if kind in ("constant", "exact"):
            quality = (3 * quality).round()
        units = directions(x)
        fast = dpp_tokens(units, quality, k)
        for b in range(2):
            whole = torch.from_numpy(np.stack([cpu._cosines(cpu._rows(units[b]), n, i) for i in range(n)]))[None]
            whole.diagonal(dim1=1, dim2=2).copy_(settle((units[b] * units[b]).sum(dim=1)))
            assert torch.equal(fast[b], reference.dpp_map(whole, quality[b : b + 1], k)[0]), (kind, seed, b)
            assert torch.equal(fast[b], dpp_tokens(units[b : b + 1], quality[b : b + 1], k)[0])
        if kind == "exact":  # nothing is rounded, so that the matrix itself gives the same
            assert torch.equal(fast, reference.dpp_map(cosine(x), quality, k)), seed


@pytest.mark.parametrize("kind", KINDS)
def test_heaviest_points(kind):
    for seed in range(180):
        similarity, quality, preset = small(kind, seed)
        k, left = preset.shape[1], (0.0, 1e-6, 0.1, 0.5, 1.0)[seed % 5]
        fast, plain = (m.heaviest_points(similarity, quality, k, left).rows for m in (cpu, reference))
        assert torch.equal(fast, plain), (kind, seed)
        for row in fast.tolist():
            taken = [i for i in row if i >= 0]
            assert len(set(taken)) == len(taken) and row == taken + [-1] * (k - len(taken))


@pytest.mark.parametrize("kind", KINDS)
def test_heaviest_of_tokens(kind, monkeypatch):
    """Without the matrix: the plain loop on the cosines that it takes, but on all of them."""
    monkeypatch.setattr(cpu, "_SMALL", 0)
    for seed in range(60):
        x, preset = many(kind, seed)
        n, k = x.shape[1], preset.shape[1]
        quality = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) ** 3
        units = directions(x)
        fast = heaviest_tokens(units, quality, k, 0.1)
        assert fast.similarity is None
        for b in range(2):
            whole = torch.from_numpy(np.stack([cpu._cosines(cpu._rows(units[b]), n, i) for i in range(n)]))[None]
            plain = reference.heaviest_points(whole, quality[b : b + 1], k, 0.1).rows[0]
            assert torch.equal(fast.rows[b], plain), (kind, seed, b)
            assert torch.equal(heaviest_tokens(units[b : b + 1], quality[b : b + 1], k, 0.1).rows[0], plain)


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_tokens_have_equal_cosines(threads):
    """Or which of several equal tokens is picked would hang on how a product is cut up."""
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n, d in ((37, 19), (577, 64), (576, 1024), (730, 1000), (1500, 512)):
            x = directions(torch.randn(n, d, generator=torch.Generator().manual_seed(n))[torch.arange(n) // 3][None])
            found = cpu._cosines(cpu._rows(x[0]), n, n // 2)
            assert all((found[i::3][: n // 3] == found[::3][: n // 3]).all() for i in (1, 2))
    finally:
        torch.set_num_threads(usual)


def test_the_definitions_by_brute_force():
    similarity, quality, _ = small("gauss", 7)
    n, k = similarity.shape[1], 6
    order = reference.dpp_map(similarity, quality, k)[0].tolist()
    kernel = (quality[0][:, None] * similarity[0] * quality[0]).double()
    for step, pick in enumerate(order):
        gains = {
            j: float(torch.linalg.slogdet(kernel[[*order[:step], j]][:, [*order[:step], j]])[1])
            for j in range(n)
            if j not in order[:step]
        }
        assert gains[pick] >= max(gains.values()) - 1e-5
    chosen = []
    for pick in reference.heaviest_points(similarity, quality, n, 0.2).rows[0].tolist():
        gap = [min([1.0, *(max(0.0, 1 - float(similarity[0, i, j])) for j in chosen)]) for i in range(n)]
        uncovered = [0.0 if i in chosen else float(quality[0, i]) * gap[i] for i in range(n)]
        if pick < 0:
            assert sum(uncovered) <= 0.2 * float(quality[0].sum())
            break
        assert sum(uncovered) > 0.2 * float(quality[0].sum()) and uncovered[pick] >= max(uncovered) - 1e-6
        chosen.append(pick)
    assert 0 < len(chosen) < n
    order = reference.coverage(similarity, quality, k)[0].tolist()
    best = torch.zeros(n)
    for pick in order:
        gain = quality[0] * (similarity[0] - best).clamp(min=0).sum(1)
        assert float(gain[pick]) >= float(gain.max()) - 1e-4
        best = torch.maximum(best, similarity[0, pick])


def test_rows_of_the_matrix():
    for n, k in ((40, 1), (40, 40), (200, 5), (300, 90)):
        g = torch.Generator().manual_seed(n + k)
        x, rows = (
            torch.randn(2, n, 33, generator=g),
            torch.stack([torch.randperm(n, generator=g)[:k] for _ in range(2)]),
        )
        expected = cosine(x).gather(1, rows[..., None].expand(-1, -1, n))
        torch.testing.assert_close(cosine_rows(directions(x), rows), expected, atol=1e-6, rtol=0)
        assert torch.equal(cosine_rows(directions(x[1:]), rows[1:])[0], cosine_rows(directions(x), rows)[1])
        twice = cosine_rows(directions(x[:, torch.arange(n) // 2]), torch.tensor([[2, 3], [2, 3]]))
        assert torch.equal(twice[:, 0], twice[:, 1])  # equal tokens, equal rows


def test_cosine_is_symmetric_bounded_and_blind_to_neighbours():
    x = torch.randn(3, 40, 9, generator=torch.Generator().manual_seed(0))
    s = cosine(x)
    assert torch.equal(s, s.mT) and float(s.max()) <= 1 and float(s.min()) >= -1
    assert torch.equal(cosine(x[1:2])[0], s[1]) and torch.equal(cosine(x[2]), s[2])
    assert torch.equal(cosine(torch.zeros(4, 3)), torch.zeros(4, 4))
    torch.testing.assert_close(
        s, torch.nn.functional.cosine_similarity(x[:, :, None], x[:, None], dim=-1), atol=1e-5, rtol=0
    )
