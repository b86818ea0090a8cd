"""The fast path against the plain loops: the same indices, on random and on degenerate input; ties to the lowest."""

import pytest
import torch

from fsr.kernels import cosine, cpu, reference

KINDS = ["gauss", "clusters", "duplicates", "constant", "zeros", "line"]


def features(kind, seed):
    g = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 50, (1,), generator=g))
    d = int(torch.randint(1, 24, (1,), generator=g))
    x = torch.randn(2, n, d, generator=g)
    if kind == "clusters":
        x = x[:, torch.arange(n) % max(1, n // 5)] + 0.05 * torch.randn(2, n, d, generator=g)
    elif kind == "duplicates":
        x = x[:, torch.randint(0, max(1, n // 3), (n,), generator=g)]
    elif kind == "constant":
        x = torch.ones(2, n, d)
    elif kind == "zeros":
        x = torch.zeros(2, n, d)
    elif kind == "line":
        x = torch.linspace(-1, 1, n)[None, :, None] * torch.ones(2, n, d)
    k = int(torch.randint(1, n + 1, (1,), generator=g))
    return cosine(x), torch.rand(2, n, generator=g) if kind != "constant" else torch.ones(2, n), k, g


@pytest.mark.parametrize("kind", KINDS)
def test_farthest_points(kind):
    for seed in range(180):
        similarity, _, k, g = features(kind, seed)
        n = similarity.shape[1]
        preset = torch.full((2, k), -1)
        for b in range(2):  # ragged numbers of anchors
            fixed = int(torch.randint(0, k + 1, (1,), generator=g))
            preset[b, :fixed] = torch.randperm(n, generator=g)[:fixed]
        fast, plain = cpu.farthest_points(similarity, preset), reference.farthest_points(similarity, preset)
        assert torch.equal(fast.order, plain.order), (kind, seed)
        assert torch.equal(fast.radius.nan_to_num(-1), plain.radius.nan_to_num(-1))
        assert torch.equal(fast.nearest, plain.nearest)
        assert all(len(set(row)) == k for row in fast.order.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_dpp_and_coverage(kind):
    for seed in range(180):
        similarity, quality, k, _ = features(kind, seed)
        for name in ("dpp_map", "coverage"):
            fast, plain = getattr(cpu, name)(similarity, quality, k), getattr(reference, name)(similarity, quality, k)
            assert torch.equal(fast, plain), (name, kind, seed)
            assert all(len(set(row)) == k for row in fast.tolist())


def test_the_definitions_by_brute_force():
    similarity, quality, _, _ = features("gauss", 7)
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
    order = reference.coverage(similarity, quality, k)[0].tolist()
    best = torch.zeros(n)
    for pick in order:
        gain = quality[0] * (similarity[0] - best).clamp(min=0).sum(1)
        assert float(gain[pick]) >= float(gain.max()) - 1e-4
        best = torch.maximum(best, similarity[0, pick])


def test_cosine_is_symmetric_bounded_and_blind_to_neighbours():
    x = torch.randn(3, 40, 9, generator=torch.Generator().manual_seed(0))
    s = cosine(x)
    assert torch.equal(s, s.mT) and float(s.max()) <= 1 and float(s.min()) >= -1
    assert torch.equal(cosine(x[1:2])[0], s[1]) and torch.equal(cosine(x[2]), s[2])
    assert torch.equal(cosine(torch.zeros(4, 3)), torch.zeros(4, 4))
    torch.testing.assert_close(
        s, torch.nn.functional.cosine_similarity(x[:, :, None], x[:, None], dim=-1), atol=1e-5, rtol=0
    )
