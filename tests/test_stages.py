"""Normalisation, ranking, Focus, Scan and Refine on inputs whose answer can be worked out by hand or by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fsr.errors import UsageError
from fsr.kernels import directions
from fsr.stages.focus import Focus, distinct_focus, focus, priority
from fsr.stages.normalise import normalise
from fsr.stages.ranking import ranked, top_k
from fsr.stages.refine import refine
from fsr.stages.scan import scan

small = settings(max_examples=40, derandomize=True, deadline=None)
seeds = st.integers(0, 10**6)


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_circle(*angles: float) -> torch.Tensor:
    a = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([a.cos(), a.sin()], dim=1)


def fixed(*rows: int, k: int) -> Focus:
    count = torch.tensor([len(rows)])
    return Focus(torch.tensor([[*rows, *[-1] * (k - len(rows))]]), count, count)


# --------------------------------------------------------------------------------------------- normalise, ranking


@pytest.mark.parametrize("how", ["minmax", "rank", "softmax"])
def test_constant_scores_become_ones(how):
    assert torch.equal(normalise(torch.full((2, 5), 0.25), how), torch.ones(2, 5))


@small
@given(
    hnp.arrays(np.float32, (2, 9), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(["minmax", "rank", "softmax"]),
)
def test_normalised_scores_keep_order_and_range(values, how):
    x = torch.from_numpy(values)
    y = normalise(x, how)
    assert y.dtype == torch.float32 and y.min() >= 0 and y.max() <= 1
    assert torch.equal(y.amax(dim=1), torch.ones(2))
    below = x[:, :, None] < x[:, None, :]
    assert (y[:, :, None] <= y[:, None, :])[below].all()
    for b in range(2):  # every image on its own
        assert torch.equal(normalise(x[b : b + 1], how)[0], y[b])


def test_minmax_is_linear_and_rank_counts():
    x = torch.tensor([[1.0, 3.0, 2.0, 3.0]])
    assert torch.equal(normalise(x, "minmax"), torch.tensor([[0.0, 1.0, 0.5, 1.0]]))
    assert torch.equal(normalise(x, "rank"), torch.tensor([[0.25, 1.0, 0.5, 1.0]]))
    torch.testing.assert_close(normalise(x, "softmax"), torch.softmax(x, -1) / torch.softmax(x, -1).max())


@pytest.mark.parametrize("how", ["minmax", "softmax"])
def test_the_span_of_the_whole_image_rules_a_tile(how):
    image = torch.tensor([[0.0, 4.0, 1.0, 2.0, 3.0, 1.0]])
    span = torch.tensor([[0.0, 4.0]])
    whole = normalise(image, how)
    tiles = torch.cat([normalise(image[:, :3], how, span), normalise(image[:, 3:], how, span)], dim=1)
    assert torch.equal(whole, tiles)
    assert not torch.equal(whole[:, 3:], normalise(image[:, 3:], how))


def test_half_precision_scores_are_normalised_in_float32():
    x = torch.tensor([[0.001, 0.002, 0.0015]], dtype=torch.bfloat16)
    assert torch.equal(normalise(x), normalise(x.float()))


def test_unknown_normalisation_is_an_error():
    with pytest.raises(UsageError, match="'minmax', 'rank' or 'softmax'"):
        normalise(torch.ones(1, 3), "z-score")  # type: ignore[arg-type]


@small
@given(hnp.arrays(np.int64, (3, 40), elements=st.integers(0, 4)), st.integers(1, 40))
def test_top_k_takes_the_lowest_index_of_equal_scores(values, k):
    scores = torch.from_numpy(values).float()
    expected = [sorted(range(40), key=lambda i: (-row[i], i))[:k] for row in values.tolist()]
    assert top_k(scores, k).tolist() == expected
    assert torch.equal(ranked(scores)[0], scores.gather(1, top_k(scores, 40)))


# ---------------------------------------------------------------------------------------------------------------- Focus


def test_priority_is_a_product_of_powers():
    s, r = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[1.0, 0.5, 0.25]])
    torch.testing.assert_close(priority(s, r, 3.0, 1.0), r**3 * s)
    assert torch.equal(priority(s, None, 3.0, 1.0), s)
    assert torch.equal(priority(s, r, 0.0, 0.0), torch.ones(1, 3))  # 0^0 = 1: an exponent of 0 switches the score off


def naive_focus(phi: list[float], k: int, rho: float, mass: str, cap: int) -> tuple[list[int], int]:
    order = sorted(range(len(phi)), key=lambda i: (-phi[i], i))
    total = sum(phi) if mass == "all" else sum(phi[i] for i in order[:k])
    if total == 0:
        return [], 0
    held, wanted = 0.0, 0
    for i in order:
        held, wanted = held + phi[i], wanted + 1
        if held >= rho * total - 1e-12 * total:
            break
    return order[: min(wanted, k, cap)], wanted


@small
@given(
    hnp.arrays(np.int64, (3, 24), elements=st.integers(0, 9)),
    st.integers(1, 23),
    st.sampled_from([0.1, 0.5, 0.75, 0.9, 1.0]),
    st.sampled_from(["all", "top_k"]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_focus_is_the_shortest_prefix(values, k, rho, mass, share):
    chosen = focus(torch.from_numpy(values).float(), k, rho, mass, share)
    for b, phi in enumerate(values.tolist()):
        rows, wanted = naive_focus(phi, k, rho, mass, max(1, int(share * k)) if share else 0)
        assert chosen.rows[b].tolist() == rows + [-1] * (k - len(rows))
        assert (chosen.size[b], chosen.wanted[b]) == (len(rows), wanted)


def test_no_priority_means_no_focus():
    chosen = focus(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), 2)
    assert chosen.size.tolist() == [0, 1] and chosen.rows.tolist() == [[-1, -1], [1, -1]]


def test_distinct_focus_takes_every_object_once():
    """Three objects of four, two and one equal patches: the prefix fills up with the first, distinct Focus does not."""
    units = directions(torch.eye(3)[torch.tensor([0, 0, 0, 0, 1, 1, 2])][None])
    phi = torch.tensor([[0.9, 1.0, 0.9, 0.9, 0.5, 0.5, 0.3]])
    assert focus(phi, 3).rows.tolist() == [[1, 0, 2]]
    chosen = distinct_focus(phi, units, 3, rho=0.95)
    assert chosen.rows.tolist() == [[1, 4, 6]] and chosen.size.tolist() == [3]
    # Of 5 in all, object 1 leaves 1.3 uncovered, object 2 leaves 0.3.
    assert distinct_focus(phi, units, 3, rho=0.75).size.item() == 2
    assert distinct_focus(phi, units, 7, rho=1.0).rows.tolist() == [[1, 4, 6, -1, -1, -1, -1]]
    assert distinct_focus(phi, units, 3, rho=0.95, max_focus=0.7).rows.tolist() == [[1, 4, -1]]
    assert distinct_focus(phi, units, 3, max_focus=0.1).rows.tolist() == [[1, -1, -1]]
    assert distinct_focus(phi, units, 3, max_focus=0.0).rows.tolist() == [[-1, -1, -1]]


def test_distinct_focus_of_tokens_without_likeness_is_the_prefix():
    phi = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) ** 2
    phi[1] = 0
    for cap in (1.0, 0.5):
        one = distinct_focus(phi, directions(torch.eye(12).expand(2, -1, -1)), 10, max_focus=cap)
        other = focus(phi, 10, max_focus=cap)
        assert torch.equal(one.rows, other.rows) and torch.equal(one.size, other.size)
    # No picture has to know its neighbours.
    assert torch.equal(distinct_focus(phi[:1], directions(torch.eye(12)[None]), 10, max_focus=0.5).rows, one.rows[:1])


def test_a_long_tail_does_not_stall_the_sum():
    # In float16 small terms vanish from a running sum; the mass must still reach rho * Z.
    phi = torch.cat([torch.ones(1), torch.full((999,), 1e-4)])[None]
    assert focus(phi, 1000, rho=0.95).wanted.item() == 1 + int(np.ceil((0.95 * 1.0999 - 1) / 1e-4 - 1e-3))


# ----------------------------------------------------------------------------------------------------------------- Scan


def chord(x: torch.Tensor) -> torch.Tensor:
    """Chordal distances of unit vectors in float64, without the cancellation of 1 - cos."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def optimum(distance: torch.Tensor, anchors: list[int], free: int) -> float:
    others = [i for i in range(len(distance)) if i not in anchors]
    choices = torch.tensor([anchors + list(c) for c in itertools.combinations(others, free)])
    return distance[choices].amin(dim=1).amax(dim=1).min().item()


@small
@given(seeds, st.integers(0, 2), st.integers(1, 3), st.integers(6, 9), st.integers(2, 4))
def test_the_chordal_radius_is_at_most_twice_the_optimum(seed, n_focus, n_scan, n, d):
    x = torch.nn.functional.normalize(vectors(seed, n, d).double(), dim=1)
    out = scan(directions(x[None]), fixed(*range(n_focus), k=n_focus + n_scan), torch.rand(1, n))
    distance = chord(x)
    reached = distance[out.rows[0]].amin(dim=0).max().item()
    best = optimum(distance, list(range(n_focus)), n_scan)
    assert reached <= 2 * best + 1e-6
    assert (distance**2 / 2)[out.rows[0]].amin(dim=0).max().item() <= 4 * best**2 / 2 + 1e-6
    assert abs(out.radius.item() - reached**2 / 2) < 2e-6  # the certificate is what was reached


def test_the_factor_two_of_the_paper_is_false_under_one_minus_cosine():
    x = on_circle(0, 1, 1.05, 1.1)
    out = scan(directions(x[None]), fixed(0, k=2), torch.ones(1, 4))
    assert out.rows.tolist() == [[0, 3]]
    one_minus_cos = 1 - x @ x.T
    reached = one_minus_cos[out.rows[0]].amin(dim=0).max().item()
    best = optimum(one_minus_cos, [0], 1)
    assert reached / best == pytest.approx(3.998, abs=1e-3)
    assert (reached / best) ** 0.5 < 2  # the same picks under the chordal distance


def test_scan_starts_from_the_highest_saliency_when_focus_is_empty():
    x = on_circle(0, 0.5, 2.0, 3.0).float()
    out = scan(directions(x[None]), fixed(k=3), torch.tensor([[0.1, 0.7, 0.7, 0.2]]))
    assert out.rows.tolist() == [[1, 3, 2]]
    assert out.scanned.all() and out.radii[0, 0] == 2.0


@small
@given(seeds, st.integers(1, 7), st.integers(8, 12))
def test_radii_fall_and_ragged_focus_sets_share_a_batch(seed, k, n):
    x = vectors(seed, 3, n, 5)
    sizes = torch.tensor([0, k // 2, k])
    order = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(seed + b))[:k] for b in range(3)])
    rows = torch.where(torch.arange(k) < sizes[:, None], order, -1)
    saliency = torch.rand(3, n, generator=torch.Generator().manual_seed(seed))
    together = scan(directions(x), Focus(rows, sizes, sizes), saliency)
    for b in range(3):
        one = slice(b, b + 1)
        alone = scan(directions(x[one]), Focus(rows[one], sizes[one], sizes[one]), saliency[one])
        for whole, part in zip(together, alone):
            assert torch.equal(torch.nan_to_num(whole[one], 9), torch.nan_to_num(part, 9))
        assert len(set(together.rows[b].tolist())) == k
        assert together.rows[b, : sizes[b]].tolist() == order[b, : sizes[b]].tolist()
        radii = together.radii[b][together.scanned[b]]
        assert not radii.isnan().any() and together.radii[b][~together.scanned[b]].isnan().all()
        assert (radii.diff() <= 0).all() and (together.radius[b] <= radii[-1:]).all()


# --------------------------------------------------------------------------------------------------------------- Refine


def naive_refine(x, rows, scanned, phi, kappa):
    """Eq. 8 and 9 one token at a time, in float64, on lists."""
    x, phi = x.double(), phi.double()
    unit = torch.nn.functional.normalize(x, dim=1)
    anchors = sorted(r for r, s in zip(rows, scanned) if s)
    pairs = []
    for i in range(len(x)):
        if i not in rows and anchors:
            likeness = [round(float(unit[i] @ unit[j]), 6) for j in anchors]
            pairs.append((-max(likeness), i, anchors[likeness.index(max(likeness))]))
    value, weight = {j: x[j].clone() for j in rows}, {j: phi[j].clone() for j in rows}
    merged = [-1] * len(x)
    for _, i, j in sorted(pairs)[: int(kappa * len(anchors))]:
        if weight[j] + phi[i] > 0:
            value[j] = (weight[j] * value[j] + phi[i] * x[i]) / (weight[j] + phi[i])
            weight[j] = weight[j] + phi[i]
        merged[i] = j
    return torch.stack([value[j] for j in rows]), merged


@small
@given(seeds, st.sampled_from([0.0, 0.5, 1.0, 2.5, 100.0]), st.integers(1, 9), st.booleans())
def test_refine_equals_the_update_token_by_token(seed, kappa, k, sparse):
    n, generator = 12, torch.Generator().manual_seed(seed)
    x = vectors(seed, 2, n, 6)
    rows = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(2)])
    scanned = torch.rand(2, k, generator=generator) < 0.6
    phi = torch.rand(2, n, generator=generator) * (torch.rand(2, n, generator=generator) < (0.5 if sparse else 1.0))
    out, merged = refine(x, directions(x), rows, scanned, phi, kappa)
    for b in range(2):
        value, into = naive_refine(x[b], rows[b].tolist(), scanned[b].tolist(), phi[b], kappa)
        assert merged[b].tolist() == into
        torch.testing.assert_close(out[b].double(), value, atol=1e-5, rtol=1e-5)
        kept = x[b, rows[b]]
        absorbed = {j for i, j in enumerate(into) if j >= 0 and phi[b, i] > 0}
        still = torch.tensor([int(r) not in absorbed for r in rows[b]])
        assert torch.equal(out[b][still], kept[still])  # focus tokens and idle anchors: to the bit


def test_without_weights_anchors_stay_to_the_bit():
    x = vectors(3, 1, 8, 4).bfloat16()
    rows, scanned = torch.tensor([[5, 1, 2]]), torch.tensor([[False, True, True]])
    out, merged = refine(x, directions(x), rows, scanned, torch.zeros(1, 8))
    assert torch.equal(out, x[:, [5, 1, 2]]) and (merged >= 0).sum() == 2


def test_equal_anchors_absorb_into_the_lower_row():
    x = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    rows, scanned = torch.tensor([[2, 1]]), torch.tensor([[True, True]])  # chosen in this order
    _, merged = refine(x, directions(x), rows, scanned, torch.ones(1, 4))
    assert merged.tolist() == [[1, -1, -1, 1]]


def test_merging_in_bfloat16_averages_in_float32():
    x = torch.tensor([[[1.0, 1.0], [1.0, 1.0078125], [0.0, -1.0]]]).bfloat16()
    phi = torch.tensor([[3.0, 1.0, 0.0]])
    out, _ = refine(x, directions(x), torch.tensor([[0]]), torch.tensor([[True]]), phi)
    assert out.dtype == torch.bfloat16
    mean = (0.75 * x[0, 0].float() + 0.25 * x[0, 1].float()).bfloat16()
    assert torch.equal(out[0, 0], mean)
