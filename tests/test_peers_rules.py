"""The rules of single peers against loops written out by hand, where no official selection covers them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fsr.methods import get
from fsr.methods.hired import tile_budgets
from fsr.methods.holov import holov_indices
from fsr.methods.quotas import apportion, rank_in_group
from fsr.methods.uniform_grid import even, lattice
from fsr.methods.visionzip import contextual
from fsr.methods.vispruner import drop_duplicates
from fsr.tokens import Geometry, Stage, VisualTokens

FOLDER = Path(__file__).parent / "oracles"
CASES = [f"c0{i}" for i in range(6)]


def oracle(name, case):
    with np.load(FOLDER / f"{name}.npz") as data:
        return {k.removeprefix(f"{case}_"): torch.from_numpy(np.asarray(data[k])) for k in data.files}


def rand(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randn(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_order(selection):
    return selection.rows[selection.order.argsort()].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_split_in_whole_numbers_that_add_up_and_fit(seed):
    weight = rand(seed, 3, 7).pow(6)
    weight[2] = 0
    room = (rand(seed + 100, 7) * 9).long()
    total = int(room.sum()) * seed // 19
    given = apportion(weight, total, room)
    assert given.sum(-1).tolist() == [total] * 3 and bool((given <= room).all()) and bool((given >= 0).all())
    fair = (weight[:2] / weight[:2].sum(-1, keepdim=True) * total).floor().long()
    assert bool((given[:2] >= torch.minimum(fair, room)).all()), "less than the share rounded down"


def test_what_is_left_over_goes_to_the_largest_weights():
    assert apportion(torch.tensor([[2.0, 5.0, 3.0]]), 6, torch.tensor([9, 9, 9])).tolist() == [[1, 4, 1]]
    assert apportion(torch.tensor([[2.0, 5.0, 3.0]]), 6, torch.tensor([9, 2, 9])).tolist() == [[2, 2, 2]]


def test_rank_in_group_counts_better_members_and_earlier_equals():
    score, group = (rand(0, 2, 40) * 6).round(), (rand(1, 2, 40) * 4).long()
    got = rank_in_group(score, group)
    for b in range(2):
        for i in range(40):
            ahead = [
                j
                for j in range(40)
                if group[b, j] == group[b, i] and (score[b, j] > score[b, i] or (score[b, j] == score[b, i] and j < i))
            ]
            assert int(got[b, i]) == len(ahead)


def test_lattices_are_distinct_and_the_exact_one_is_the_centres_of_blocks():
    assert lattice(12, 12, 16).tolist() == [12 * y + x for y in (1, 4, 7, 10) for x in (1, 4, 7, 10)]
    for h, w in ((1, 9), (9, 1), (5, 7), (12, 3)):
        for k in range(1, h * w + 1):
            rows = lattice(h, w, k)
            assert len(rows) == k and bool((rows.diff() > 0).all()) and 0 <= int(rows[0]) and int(rows[-1]) < h * w
    assert even(10, 3).tolist() == [1, 5, 8]


def test_random_depends_on_seed_and_count_only():
    draw = lambda seed, features: get("random", keep=9, seed=seed)([VisualTokens(features)])[0].rows.tolist()
    one, other = randn(11, 60, 4), randn(12, 60, 8, dtype=torch.float64)
    assert draw(0, one) == draw(0, other) != draw(1, one)
    hits = torch.zeros(60)
    for seed in range(400):
        hits[draw(seed, one)] += 1
    assert 30 < float(hits.min()) and float(hits.max()) < 95, "not uniform: 60 +- 7 expected"


def hired_picture():
    """Tile 0 shows a 4 x 4 picture, tiles 1 to 4 are its quarters with 4 x 4 tokens each."""
    whole = Geometry.raster(4, 4).boxes
    corners = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)]
    parts = [whole / 2 + torch.tensor([x, y, x, y]) for x, y in corners]
    tile = torch.arange(5).repeat_interleave(16)
    return Geometry(torch.cat([whole, *parts]), tile, torch.zeros(80, dtype=torch.long))


def test_hired_gives_a_part_what_the_whole_picture_looks_at():
    where = hired_picture()
    first = torch.zeros(80)
    # The 8 best of tile 0: six in the upper right quarter and its border, two in the lower left one.
    first[[2, 3, 6, 7]] = 0.9
    first[[8, 9, 12, 13]] = 0.8
    assert tile_budgets(first, where.boxes, where.tile, 20, 0.5).tolist() == [10, 0, 5, 5, 0]
    first[[8, 9, 12, 13]] = torch.tensor([0.8, 0.8, 0.0, 0.0])
    first[[0, 1]] = 0.7
    assert tile_budgets(first, where.boxes, where.tile, 20, 0.5).tolist() == [10, 2, 6, 2, 0]
    saliency = rand(3, 80)
    image = VisualTokens(randn(13, 80, 4), saliency=saliency, geometry=where, extra={"first_saliency": first})
    (s,) = get("hired", keep=20)([image])
    for t, budget in enumerate([10, 2, 6, 2, 0]):
        mine = (where.tile == t).nonzero()[:, 0]
        best = mine[saliency[mine].argsort(descending=True)[:budget]].sort().values
        assert torch.equal(s.rows[where.tile[s.rows] == t], best)


def test_hired_full_parts_pass_their_surplus_on():
    where = hired_picture()
    first = torch.zeros(80)
    first[[2, 3, 6, 7]] = 1.0  # the other four of M are the lowest rows, upper left and upper right
    given = tile_budgets(first, where.boxes, where.tile, 78, 0.0)
    assert int(given.sum()) == 78 and given.tolist()[1:] == [16, 16, 16, 16] and int(given[0]) == 14


@pytest.mark.parametrize("case", CASES)
def test_holov_keeps_the_official_rows_and_fills_the_rows_of_zeros(case):
    x, expected = oracle(f"inputs_{case}", case), oracle("out_holov", case)
    k = int(x["K"])
    image = VisualTokens(x["feat_proj"].float(), saliency=x["attn_cls"][:, 1:].mean(0))
    (s,) = get("holov", keep=k)([image])
    official = {int(i) for i in expected["idx_in_output_order"] if i >= 0}
    assert official <= set(s.rows.tolist()) and s.kept == k
    rows, _ = holov_indices(image.features[None], image.saliency[None], k)
    assert int((rows < 0).sum()) == k - len(official)


@pytest.mark.parametrize("case", CASES)
def test_visionzip_indices(case):
    x, expected = oracle(f"inputs_{case}", case), oracle("out_visionzip", case)
    d, c = int(expected["D"]), int(expected["C"])
    saliency = x["attn_cls"][:, 1:].sum(0)
    dominant = saliency.argsort(descending=True)[: d - 1]
    assert torch.equal(dominant.sort().values, expected["dominant_patches_sorted"].long())
    targets, _, _, assign = contextual(
        x["feat_pre"][None].float(), x["key_metric"][None, 1:].float(), dominant[None], c
    )
    assert torch.equal(targets[0], expected["contextual_targets"].long())
    assert torch.equal(assign[0], expected["assign"].long())


@pytest.mark.parametrize("faithful", [False, True])
def test_visionzip_hands_on_the_mean_or_the_sum(faithful):
    features, keys = randn(14, 30, 5), randn(15, 30, 6)
    image = VisualTokens(features, saliency=rand(2, 30), extra={"keys": keys})
    (s,) = get("visionzip", keep=8, contextual=0.25, faithful=faithful)([image])
    assert (s.stage == Stage.MERGED).sum() == 2
    for row, token, stage in zip(s.rows.tolist(), s.features, s.stage.tolist()):
        own = features[row]
        members = (s.merged_into == row).nonzero()[:, 0]
        if stage == Stage.MERGED and len(members):
            own = (own + features[members].mean(0)) / (1 if faithful else 2)
        torch.testing.assert_close(token, own)
    assert int((s.merged_into >= 0).sum()) == 30 - 8


def test_trim_hands_on_the_mean_of_all_dropped_tokens():
    features, relevance = randn(16, 25, 6), rand(4, 25)
    (s,) = get("trim", keep=7)([VisualTokens(features, relevance=relevance)])
    best = set(relevance.argsort(descending=True)[:6].tolist())
    dropped = [i for i in range(25) if i not in best]
    assert set(s.rows.tolist()) == best | {dropped[-1]}
    assert s.rows[s.stage == Stage.MERGED].tolist() == [dropped[-1]]
    torch.testing.assert_close(s.features[s.stage == Stage.MERGED][0], features[dropped].mean(0))
    torch.testing.assert_close(s.features[s.stage == Stage.FOCUS], features[sorted(best)])


def test_prumerge_adds_neighbours_and_one_token_of_the_dropped():
    n, k = 50, 9
    features, keys, attention = randn(17, n, 6), randn(18, n, 5), rand(5, n) / n
    extra = {"last_keys": keys, "last_saliency": attention}
    (s,) = get("prumerge", keep=k)([VisualTokens(features, extra=extra)])
    picked = in_order(s)
    top = attention.argsort(descending=True)[:2].tolist()  # a quarter of 8; the others at even steps of the rest
    rest = [i for i in range(n) if i not in top]
    assert picked[:-1] == top + [rest[(2 * j + 1) * len(rest) // 12] for j in range(6)]
    unit = keys / keys.norm(dim=1, keepdim=True)
    expected = {}
    for i in picked[:-1]:
        near = [j for j in (unit @ unit[i]).argsort(descending=True).tolist() if j != i][:32]
        expected[i] = features[i] + sum(attention[j] * features[j] for j in near)
    dropped = [i for i in range(n) if i not in picked[:-1]]
    assert picked[-1] == dropped[-1]
    expected[picked[-1]] = sum(attention[j] * features[j] for j in dropped)
    torch.testing.assert_close(s.features, torch.stack([expected[int(i)] for i in s.rows]))


@pytest.mark.parametrize("k", [1, 3, 16, 21, 40, 63])
def test_vispruner_drops_by_rounds_whatever_is_odd(k):
    n = 64
    features, saliency = randn(19, n, 9), rand(6, n)
    order = saliency.argsort(descending=True).tolist()
    important, rest = order[: k // 2], order[k // 2 :]
    keep = k - k // 2
    unit = features / features.norm(dim=1, keepdim=True)
    while len(rest) > keep:
        a, b = rest[0::2], rest[1::2]
        r = min(8, len(rest) - keep, len(a))
        closest = {i: max(float(unit[i] @ unit[j]) for j in b) for i in a}
        rest = sorted(a, key=lambda i: -closest[i])[r:] + b
    (s,) = get("vispruner", keep=k)([VisualTokens(features, saliency=saliency, encoder=features)])
    assert in_order(s) == important + rest
    assert drop_duplicates(features[None], torch.tensor([order[k // 2 :]]), keep)[0].tolist() == rest


@pytest.mark.parametrize("k", [5, 16, 33, 50])
def test_vscan_visits_windows_in_rounds(k):
    n, side = 144, 12
    shallow, deep, features = rand(7, n), rand(8, n), randn(20, n, 7)
    geometry = Geometry.raster(side, side)
    image = VisualTokens(features, saliency=deep, geometry=geometry, extra={"shallow_saliency": shallow})
    (s,) = get("vscan", keep=k)([image])
    local = in_order(s)[: k // 2]
    count = torch.zeros(16, dtype=torch.long)
    for i in local:
        count[4 * (i // side // 3) + i % side // 3] += 1
    assert int(count.max()) == math.ceil(len(local) / 16) and int(count.min()) == len(local) // 16
    others = [i for i in deep.argsort(descending=True).tolist() if i not in local]
    assert in_order(s)[k // 2 :] == others[: k - k // 2]
    for row, token in zip(s.rows.tolist(), s.features):
        members = (s.merged_into == row).nonzero()[:, 0]
        torch.testing.assert_close(token, torch.cat([features[row : row + 1], features[members]]).mean(0))
    assert int((s.merged_into >= 0).sum()) == n - k
