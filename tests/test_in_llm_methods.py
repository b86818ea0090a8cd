"""Methods inside the language model as functions on tensors: authors' data, exact counts, budgets, composition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr.errors import BudgetError, FeatureError, UsageError
from fsr.methods import FSR, Chain, Dart, FastV, InLLMMethod, PyramidDrop, SparseVLM, get
from fsr.methods.dart import dart, dart_pivots
from fsr.methods.fastv import fastv_score
from fsr.methods.in_llm import View
from fsr.methods.sparsevlm import cluster_count, density_peaks, raters, recycled, relation
from fsr.stages.ranking import top_k

ORACLES = Path(__file__).parent / "oracles"
CASES = [f"c{i:02d}" for i in range(6)]
SYSTEM, TEXT = 5, 9
small = settings(max_examples=30, derandomize=True, deadline=None)


def oracle(method: str, case: str):
    known = np.load(ORACLES / f"out_{method}.npz")
    given = np.load(ORACLES / f"inputs_{case}.npz")
    out = {k[4:]: torch.from_numpy(known[k]) for k in known.files if k.startswith(case)}
    n = int(given["N"])
    image = torch.arange(SYSTEM, SYSTEM + n)
    return {k: torch.from_numpy(given[k]) for k in given.files}, out, n, int(given["K"]), image


def view(seed: int, n: int, text: int = 5, heads: int = 2) -> View:
    g = torch.Generator().manual_seed(seed)
    s, d = 3 + n + text, 8
    weights = torch.rand(2, s, s, generator=g)
    hidden, keys = torch.randn(s, d, generator=g), torch.randn(s, heads * 4, generator=g)
    return View(
        image=torch.arange(3, 3 + n),
        text=torch.arange(3 + n, s),
        last=s - 1,
        hidden=hidden,
        embeddings=torch.randn(s, d, generator=g),
        normed=lambda: hidden,
        keys=lambda: keys,
        attention=lambda rows: weights[0, rows],
        next_attention=lambda rows: weights[1, rows],
    )


# -------------------------------------------------------------------------------------------------------- authors' data


@pytest.mark.parametrize("case", CASES)
def test_fastv_equals_the_authors(case):
    x, known, _, k, image = oracle("fastv", case)
    row = x["llm_attn_text"].mean(0)[-1]
    assert torch.equal(top_k(fastv_score(row, image), k).sort().values, known["sorted"].long())


@pytest.mark.parametrize("case", CASES)
def test_sparsevlm_equals_the_authors(case):
    x, known, n, k, image = oracle("sparsevlm", case)
    words = raters(x["llm_embed"][image], x["llm_embed"][-TEXT:])
    assert torch.equal(words, known["raters"].long())
    score = relation(x["llm_attn_text"].mean(0)[words][:, image])
    torch.testing.assert_close(score, known["relation"], atol=1e-7, rtol=0)
    order = top_k(score, n)
    assert torch.equal(order[:k].sort().values, known["kept"].long())
    t, c = cluster_count(n - k)
    source = order[k : k + t]
    assert torch.equal(source, known["recycle_src"].long()) and c == int(known["cluster_num"])
    states = x["llm_hidden"][image[source]]
    centres, cluster = density_peaks(states, c, 1e-6 * known["noise"])
    torch.testing.assert_close(recycled(states, cluster, c), known["merged"], atol=1e-5, rtol=0)
    assert torch.equal(cluster[centres], torch.arange(c))


@pytest.mark.parametrize("case", CASES)
def test_dart_equals_the_authors_in_their_visiting_order(case):
    x, known, _, k, image = oracle("dart", case)
    keys = x["llm_key"].transpose(0, 1).flatten(1)
    p_image, p_text = dart_pivots(keys, image, torch.arange(image[-1] + 1, len(keys)), 4, 4)
    assert torch.equal(p_image - SYSTEM, known["image_pivots"].long())
    assert torch.equal(p_text - SYSTEM, known["text_pivots"].long())
    kept = dart(x["llm_hidden"], image, p_image, known["pivot_visit_order"].long() + SYSTEM, [k // 8] * 8)
    assert torch.equal(kept.sort().values - SYSTEM, known["sorted"].long())


# --------------------------------------------------------------------------------------------------------- exact counts

METHODS = [FastV(), PyramidDrop(), Dart(), SparseVLM(), SparseVLM(recycle=False), Dart(image_pivots=2, text_pivots=0)]


@small
@given(st.integers(0, 10**6), st.integers(2, 70), st.data(), st.sampled_from(METHODS))
def test_exactly_k_distinct_rows(seed, n, data, method):
    k = data.draw(st.integers(1, n - 1))
    choice = method.choose(view(seed, n), k)
    assert len(choice.rows) == k == len(choice.rows.unique())
    assert choice.rows.min() >= 0 and choice.rows.max() < n
    if choice.merged is not None:
        assert torch.isin(choice.merged, choice.rows).all() and choice.states.shape == (len(choice.merged), 8)
        assert torch.isfinite(choice.states).all()


@small
@given(st.integers(0, 10**6), st.integers(6, 70), st.data())
def test_faithful_dart_misses_the_budget_as_the_authors_do(seed, n, data):
    k = data.draw(st.integers(4, n - 1))
    rows = Dart(faithful=True).choose(view(seed, n), k).rows
    assert len(rows.unique()) == len(rows)
    if 8 * (k // 8) + 4 <= n:
        assert len(rows) == 8 * (k // 8) + 4


def test_dart_spreads_over_duplicates():
    """Twelve copies of one token, the pivot among them, and four others: the copies are what goes."""
    v = view(0, 16)
    loud = torch.zeros(24, 8).index_fill_(0, v.image[:1], 1.0)
    hidden = v.hidden.clone()
    hidden[v.image[:12]] = hidden[v.image[0]].clone()
    rows = Dart(image_pivots=1, text_pivots=0).choose(replace(v, normed=lambda: hidden, keys=lambda: loud), 5).rows
    assert sorted(rows.tolist()) == [0, 12, 13, 14, 15]


def test_density_peaks_finds_separated_groups_and_breaks_ties():
    groups = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    g = torch.Generator().manual_seed(3)
    x = groups.repeat_interleave(5, 0) + 0.1 * torch.randn(15, 2, generator=g)
    _, cluster = density_peaks(x, 3)
    assert len({tuple(part.unique().tolist()) for part in cluster.split(5)}) == 3
    assert all(len(part.unique()) == 1 for part in cluster.split(5))
    centres, cluster = density_peaks(torch.ones(6, 4), 2)  # all equal: no exception, distinct centres
    assert centres.tolist() == [0, 1] and cluster.max() <= 1


def test_text_behind_the_picture_is_needed_where_it_rates():
    v = replace(view(0, 8), text=torch.zeros(0, dtype=torch.long))
    with pytest.raises(FeatureError, match="behind"):
        SparseVLM().choose(v, 4)
    assert len(Dart().choose(v, 6).rows) == 6


# -------------------------------------------------------------------------------------------------------------- budgets


def test_budgets_of_the_papers():
    assert PyramidDrop(keep=0.125).layers(32) == (8, 16, 24)
    assert PyramidDrop(keep=0.125).budgets(576, 32) == (288, 144, 72)
    assert PyramidDrop(keep=0.125).layer_average(576, 32) == 270
    assert SparseVLM().layers(32) == (3, 7, 16)
    assert SparseVLM(keep=(300, 200, 110)).budgets(576, 32) == (300, 200, 110)
    assert FastV(keep=0.5).layer_average(576, 32) == (2 * 576 + 30 * 288) / 32
    assert FastV(keep=1000).budgets(576, 32) == (576,)


@small
@given(st.integers(1, 200), st.integers(1, 250), st.integers(5, 40))
def test_budgets_never_rise_and_end_at_keep(total, keep, depth):
    for method in (PyramidDrop(keep=keep), SparseVLM(keep=keep), FastV(keep=keep)):
        counts = method.budgets(total, depth)
        assert list(counts) == sorted(counts, reverse=True) and counts[-1] == min(keep, total) and counts[0] <= total
        assert counts[-1] <= method.layer_average(total, depth) <= total


def test_budget_by_layer_average():
    method = FastV(layer=2).at_average(100, 576, 32)
    assert method.layer_average(576, 32) <= 100 < replace(method, keep=method.keep + 1).layer_average(576, 32)
    with pytest.raises(BudgetError, match="least is"):
        FastV(layer=16).at_average(100, 576, 32)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        (FastV(layer=0), UsageError),
        (FastV(layer=4), UsageError),
        (PyramidDrop(at=(2, 1)), UsageError),
        (PyramidDrop(drops=5), UsageError),
        (SparseVLM(keep=(5, 4)), BudgetError),
    ],
)
def test_layers_that_cannot_be(method, error):
    with pytest.raises(error):
        method.layers(4)


@pytest.mark.parametrize("make", [lambda: FastV(keep=0), lambda: SparseVLM(keep=(3, 1.5)), lambda: FastV(keep=True)])
def test_bad_budgets(make):
    with pytest.raises(BudgetError):
        make()


# ---------------------------------------------------------------------------------------------------------- composition


def test_chain_order():
    chain = FSR(keep=128) | FastV(layer=16, keep=32)
    assert (
        isinstance(chain, Chain) and chain.before_llm == FSR(keep=128) and chain.in_llm == (FastV(layer=16, keep=32),)
    )
    assert chain.name == "fsr | fastv" and chain == FSR(keep=128) | FastV(layer=16, keep=32)
    longer = chain | PyramidDrop(at=(20, 24), keep=16)
    assert [m.name for m in longer.in_llm] == ["fastv", "pyramiddrop"]
    assert (FastV(layer=2, keep=64) | Dart(layer=8, keep=0.5)).before_llm is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: FastV() | FSR(), "write fsr | fastv"),
        (lambda: FSR() | FSR(), "both prune before"),
        (lambda: (FSR(keep=64) | FastV(keep=32)) | FSR(keep=16), "write fsr | fastv"),
        (lambda: FSR(keep=32) | FastV(keep=64), "do not come back"),
        (lambda: FastV(keep=32) | Dart(layer=5, keep=33), "do not come back"),
        (lambda: FSR() | "fastv", "no pruning method"),
    ],
)
def test_chains_without_sense(make, reason):
    with pytest.raises(UsageError, match=reason):
        make()


@pytest.mark.parametrize("name", ["fastv", "dart", "sparsevlm", "pyramiddrop"])
def test_registered(name):
    method = get(name, keep=12)
    assert isinstance(method, InLLMMethod) and method.keep == 12 and method.where == "inside the language model"
    assert method.paper.startswith("arXiv") and method.licence_note and method.needs
