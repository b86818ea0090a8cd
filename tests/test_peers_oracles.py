"""Every peer against what its official code selects (tests/oracles/README.md): indices exactly, tokens to 1e-5."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fsr.kernels import cosine as cosines
from fsr.kernels import coverage, dpp_map
from fsr.methods import cdpruner, divprune, get
from fsr.methods.cdpruner import stackwide
from fsr.methods.holov import holov_indices
from fsr.methods.prumerge import absorb, outlier_ratio, visit_order
from fsr.methods.trim import trim_tokens
from fsr.methods.visionzip import visionzip_tokens
from fsr.methods.vscan import average_into, local_then_global
from fsr.tokens import Geometry, VisualTokens

FOLDER = Path(__file__).parent / "oracles"
CASES = [f"c0{i}" for i in range(6)]
LARGE = "c08"


@cache
def inputs(case):
    with np.load(FOLDER / f"inputs_{case}.npz") as data:
        return {k: torch.from_numpy(np.asarray(data[k])) for k in data.files}


def official(method, case):
    with np.load(FOLDER / f"out_{method}.npz") as data:
        return {k[4:]: torch.from_numpy(np.asarray(data[k])) for k in data.files if k.startswith(case)}


def tokens(case, **more):
    """`VisualTokens` of one case, with the sign of CLIP's similarity applied (-1, the mean over text segments)."""
    x = inputs(case)
    unit = torch.nn.functional.normalize
    relevance = -(unit(x["clip_img"], dim=-1) @ unit(x["clip_txt"], dim=-1).T).mean(-1)
    return VisualTokens(
        features=x["feat_proj"],
        saliency=x["attn_cls"][:, 1:].mean(0),
        relevance=relevance,
        encoder=x["feat_pre"],
        **more,
    )


def kept(name, case, **options):
    (s,) = get(name, keep=int(inputs(case)["K"]), **options)([tokens(case)])
    return s.rows


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("faithful", [True, False])
def test_cdpruner(case, faithful):
    expected = official("cdpruner", case)
    assert torch.equal(kept("cdpruner", case, faithful=faithful), expected["sorted"].long())
    relevance = stackwide(tokens(case).relevance[None])
    torch.testing.assert_close(relevance[0], expected["relevance"].float(), atol=1e-5, rtol=1e-4)
    order = dpp_map(cosines(tokens(case).features[None]), relevance, int(inputs(case)["K"]))
    assert torch.equal(order[0], expected["order"].long())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["divprune", "fastervlm"])
def test_sorted_rows(name, case):
    assert torch.equal(kept(name, case), official(name, case)["sorted"].long())


@pytest.mark.parametrize("case", CASES)
def test_divprune_order(case):
    (s,) = get("divprune", keep=int(inputs(case)["K"]))([tokens(case)])
    assert torch.equal(s.rows[s.order.argsort()], official("divprune", case)["order"].long())


@pytest.mark.parametrize("case", CASES)
def test_vispruner(case):
    expected = official("vispruner", case)
    (s,) = get("vispruner", keep=int(inputs(case)["K"]))([tokens(case)])
    chosen = s.rows[s.order.argsort()]
    important = expected["important"].long()
    assert torch.equal(chosen[: len(important)], important)
    assert torch.equal(chosen[len(important) :], expected["diverse"].long())
    assert torch.equal(s.rows, expected["sorted"].long())


@pytest.mark.parametrize("case", CASES)
def test_scope(case):
    x = tokens(case)
    order = coverage(cosines(x.encoder[None]), x.saliency[None], int(inputs(case)["K"]))
    assert torch.equal(order[0], official("scope", case)["order"].long())
    assert torch.equal(kept("scope", case), official("scope", case)["order"].long().sort().values)


@pytest.mark.parametrize("case", CASES)
def test_visionzip(case):
    x, expected = inputs(case), official("visionzip", case)
    hidden = torch.cat([x["cls_pre"][None], x["feat_pre"]])[None]
    out = visionzip_tokens(
        hidden, x["attn_cls"][:, 1:].sum(0)[None], x["key_metric"][None, 1:], int(expected["D"]), int(expected["C"])
    )
    torch.testing.assert_close(out[0], expected["tokens"].float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_holov(case):
    x, expected = tokens(case), official("holov", case)
    rows, given = holov_indices(x.features[None], x.saliency[None], int(inputs(case)["K"]))
    assert torch.equal(given[0], expected["allocated"].long())
    assert torch.equal(rows[0], expected["idx_in_output_order"].long())


@pytest.mark.parametrize("case", CASES)
def test_holov_with_the_runs_of_its_qwen_code(case):
    x, expected = tokens(case), official("holov", case)
    n, k = int(inputs(case)["N"]), int(inputs(case)["K"])
    runs = max(1, int(1024 / 576 * n / k))
    assert runs == int(expected["qwen_num_patches"])
    rows, _ = holov_indices(x.features[None], x.saliency[None], k, runs)
    assert torch.equal(rows[0], expected["qwen_idx_in_output_order"].long())


@pytest.mark.parametrize("case", CASES)
def test_trim(case):
    x, expected = inputs(case), official("trim", case)
    n_out = int(expected["n_out"])
    score = -(x["clip_img"] @ x["clip_txt"][0])
    rows, out = trim_tokens(x["feat_pre"][None], score[None], n_out - 1)
    assert torch.equal(rows[0], expected["sorted"].long())
    torch.testing.assert_close(out[0, -1], expected["mean_token"].float(), atol=1e-5, rtol=1e-5)


def test_prumerge_plus():
    x, expected = inputs(LARGE), official("prumerge_plus", LARGE)
    patches = x["feat_pre"]
    key = expected["k_noise"].float() + torch.cat([torch.zeros(1, patches.shape[1]), 0.5 * patches])
    attention = (expected["q_cls"].float() @ key.T / patches.shape[1] ** 0.5).softmax(-1)[1:]
    torch.testing.assert_close(attention, expected["cls_attn"].float(), atol=1e-6, rtol=1e-4)
    ratio = outlier_ratio(attention)
    assert ratio == pytest.approx(float(expected["ratio"]), abs=1e-9)
    rows = visit_order(attention, ratio)
    assert torch.equal(rows, expected["idx"].long())
    out = absorb(patches[None], attention[None], key[None, 1:], rows[None])
    torch.testing.assert_close(out[0], expected["tokens"].float(), atol=1e-5, rtol=1e-5)


def test_vscan():
    x, expected = tokens(LARGE), official("vscan", LARGE)
    shallow = expected["shallow_attn"].float().mean(0)
    side = 24
    geometry = Geometry.raster(side, side)
    k = int(expected["T"])
    (s,) = get("vscan", keep=k)([tokens(LARGE, geometry=geometry, extra={"shallow_saliency": shallow})])
    assert torch.equal(s.rows, expected["sorted"].long())
    torch.testing.assert_close(s.features, expected["merged_tokens"].float(), atol=1e-5, rtol=1e-5)
    y, z = torch.meshgrid(torch.arange(side) // 6, torch.arange(side) // 6, indexing="ij")
    window = (4 * y + z).flatten()
    rows = local_then_global(shallow[None], x.saliency[None], window[None], k)[0]
    assert torch.equal(rows[: k // 2].sort().values, expected["local"].long().sort().values)
    assert torch.equal(rows[k // 2 :].sort().values, expected["glob"].long().sort().values)
    merged, _ = average_into(x.features[None], rows.sort().values[None])
    torch.testing.assert_close(merged[0], expected["merged_tokens"].float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_released_loops_agree_where_they_do_not_break(case):
    k, x = int(inputs(case)["K"]), tokens(case)
    similarity = cosines(x.features[None])
    assert torch.equal(divprune.with_repeats(similarity, k)[0], official("divprune", case)["order"].long())
    order = cdpruner.with_repeats(similarity[0], stackwide(x.relevance[None])[0], k)
    assert torch.equal(order, official("cdpruner", case)["order"].long())


def test_the_released_loops_repeat_themselves_on_degenerate_input_and_the_methods_do_not():
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))[torch.arange(24) // 4]
    similarity, k = cosines(features[None]), 12
    order = divprune.with_repeats(similarity, k)[0].tolist()
    assert len(set(order)) == 6 and order[6:] == [0] * 6
    order = cdpruner.with_repeats(similarity[0], torch.rand(24, generator=torch.Generator().manual_seed(1)) + 0.5, k)
    assert len(set(order.tolist())) < k
    image = VisualTokens(features=features, relevance=torch.rand(24, generator=torch.Generator().manual_seed(2)))
    for name in ("divprune", "cdpruner"):
        (s,) = get(name, keep=k)([image])
        assert s.kept == k == len(set(s.rows.tolist()))
