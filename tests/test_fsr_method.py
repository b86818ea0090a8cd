"""FSR as a whole: against a float64 transcription of the paper (oracles), a naive loop, and what it promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr import FSR, PaperFSR
from fsr.errors import UsageError
from fsr.tokens import Stage, VisualTokens

FOLDER = Path(__file__).parent / "oracles"
CASES = [f"c0{i}" for i in range(6)]
few = settings(max_examples=25, derandomize=True, deadline=None)


def sample(seed, n=40, d=12, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return VisualTokens(
        features=torch.randn(n, d, generator=g).to(dtype),
        saliency=torch.rand(n, generator=g) ** 3,
        relevance=torch.randn(n, generator=g),
    )


@pytest.mark.parametrize("space", ["pre", "proj"])
@pytest.mark.parametrize("sign", ["neg", "pos"])
@pytest.mark.parametrize("kind", ["raw", "sharp"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_transcription_of_the_paper(case, kind, sign, space):
    with np.load(FOLDER / f"inputs_{case}.npz") as f, np.load(FOLDER / "out_fsr_paper.npz") as g:
        x = {k: torch.from_numpy(np.asarray(f[k])) for k in f.files}
        out = {k[4:]: torch.from_numpy(np.asarray(g[k])) for k in g.files if k.startswith(case)}
    unit = torch.nn.functional.normalize
    cos = (unit(x["clip_img"].double(), dim=-1) @ unit(x["clip_txt"].double(), dim=-1).T).mean(-1)
    saliency = x["attn_cls"][:, 1:].mean(0) if kind == "raw" else out["sharp_saliency"].float()
    k = int(x["K"]) if kind == "raw" else int(out["sharp_K"])
    tokens = VisualTokens(
        features=x["feat_proj"],
        encoder=x["feat_pre"],
        saliency=saliency,
        relevance=cos.float() * (-1 if sign == "neg" else 1),
    )
    method = PaperFSR(keep=k, distance="encoder" if space == "pre" else "projected")
    (s,) = method([tokens])
    name = f"{kind}_{sign}_{space}"
    torch.testing.assert_close(s.priority, out[f"{kind}_{sign}_phi"].float(), atol=1e-5, rtol=1e-4)
    assert s.focus_wanted == int(out[f"{name}_kf_raw"])
    by_choice = s.rows[s.order.argsort()]
    focus = out[f"{name}_focus"].long()
    assert torch.equal(by_choice[: len(focus)].sort().values, focus.sort().values)
    assert torch.equal(by_choice[len(focus) :], out[f"{name}_scan"].long())
    assert torch.equal(s.rows, out[f"{name}_kept_sorted"].long())
    source, target = out[f"{name}_refine_src"].long(), out[f"{name}_refine_dst"].long()
    expected = torch.full((s.total,), -1)
    expected[source] = target
    assert torch.equal(s.merged_into, expected)
    if f"{name}_tokens_sorted" in out:
        torch.testing.assert_close(s.features, out[f"{name}_tokens_sorted"].float(), atol=1e-5, rtol=1e-4)


def naive(tokens, keep, alpha=3.0, beta=1.0, rho=0.9, kappa=1.0):
    """The paper, read aloud: lists, loops and float64; no line shared with the library."""
    v = tokens.features.double().numpy()
    v_hat = v / np.linalg.norm(v, axis=1, keepdims=True)
    n = len(v)

    def unit_interval(x):
        x = x.double().numpy()
        return (x - x.min()) / (x.max() - x.min())

    phi = unit_interval(tokens.relevance) ** alpha * unit_interval(tokens.saliency) ** beta
    order = sorted(range(n), key=lambda i: (-phi[i], i))
    mass, k_f = 0.0, 0
    while mass < rho * phi.sum() - 1e-12:
        mass += phi[order[k_f]]
        k_f += 1
    focus = order[: min(k_f, keep)]
    anchors, scan = list(focus), []
    while len(anchors) < keep:
        gap = {i: min(1 - v_hat[i] @ v_hat[j] for j in anchors) for i in range(n) if i not in anchors}
        best = max(gap, key=lambda i: (gap[i], -i))
        anchors.append(best)
        scan.append(best)
    out, weight = v.copy(), phi.copy()
    dropped = [i for i in range(n) if i not in anchors]
    if scan:
        nearest = {i: max(sorted(scan), key=lambda j: v_hat[i] @ v_hat[j]) for i in dropped}
        chosen = sorted(dropped, key=lambda i: (-(v_hat[i] @ v_hat[nearest[i]]), i))[: int(kappa * len(scan))]
        for i in chosen:
            j = nearest[i]
            if weight[j] + weight[i] > 0:
                out[j] = (weight[j] * out[j] + weight[i] * v[i]) / (weight[j] + weight[i])
                weight[j] += weight[i]
    rows = sorted(anchors)
    return k_f, sorted(focus), scan, rows, out[rows]


@few
@given(st.integers(0, 10**6), st.integers(2, 39), st.sampled_from([0.0, 1.0, 2.5]))
def test_equals_a_naive_loop(seed, keep, kappa):
    tokens = sample(seed)
    (s,) = PaperFSR(keep=keep, kappa=kappa)([tokens])
    k_f, focus, scan, rows, features = naive(tokens, keep, kappa=kappa)
    assert s.focus_wanted == k_f
    assert s.rows[s.stage == Stage.FOCUS].tolist() == focus
    assert s.rows[s.order.argsort()][s.n_focus :].tolist() == scan and s.rows.tolist() == rows
    np.testing.assert_allclose(s.features.double().numpy(), features, atol=2e-6)


@few
@given(st.integers(0, 10**6), st.integers(2, 39), st.sampled_from([0.5, 0.9, 0.99]), st.sampled_from([0.25, 1.0]))
def test_distinct_focus_equals_a_naive_loop(seed, keep, rho, most):
    """The evidence counts once however often it is there: tokens come in near copies here."""
    tokens = sample(seed, n=60)
    near = tokens.features[torch.arange(60) // 4 * 4] + 0.1 * tokens.features
    tokens = VisualTokens(features=near, saliency=tokens.saliency, relevance=tokens.relevance)
    (s,) = FSR(keep=keep, rho=rho, max_focus=most, focus_by="distinct")([tokens])
    v = near.double().numpy()
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    phi = [float(p) for p in s.priority]
    focus = []
    while len(focus) < max(1, int(most * keep)):
        gap = [min([1.0, *(max(0.0, 1 - v[i] @ v[j]) for j in focus)]) if i not in focus else 0.0 for i in range(60)]
        uncovered = [p * g for p, g in zip(phi, gap)]
        if sum(uncovered) <= (1 - rho) * sum(phi) + 1e-6 * sum(phi):
            break
        focus.append(max(range(60), key=lambda i: uncovered[i]))
    assert s.n_focus == len(focus) == s.focus_wanted
    assert s.rows[s.order.argsort()][: s.n_focus].tolist() == focus


@few
@given(st.integers(0, 10**6), st.integers(2, 39), st.booleans(), st.sampled_from([0.0, 0.5]))
def test_the_default_equals_the_rule_read_aloud(seed, keep, related, agree):
    """Volume by determinants of numpy, evidence by loops, in float64."""
    tokens = sample(seed)
    (s,) = FSR(keep=keep, agree=agree, relevance="auto" if related else "none")([tokens])
    v = tokens.features.double().numpy()
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    cosines = v @ v.T

    def stretched(x):
        return (x - x.min()) / (x.max() - x.min())

    def robust(x):
        x = stretched(x.double().numpy())
        common = np.array([np.average(x, weights=np.exp(row / 0.1)) for row in cosines])
        return stretched((1 - agree) * x + agree * common), common.var() / x.var()

    dull, trust = robust(tokens.saliency)
    salient = 1 - min(1.0, trust) * (1 - dull)
    floor = (keep / 40) ** 2 / ((keep / 40) ** 2 + 0.05**2)
    evidence = robust(tokens.relevance)[0] if related else salient
    phi = (floor + (1 - floor) * evidence) * (salient**0.25 if related else 1)
    np.testing.assert_allclose(s.priority.numpy(), phi, atol=2e-5)
    kernel = phi[:, None] * cosines * phi
    focus = []
    while len(focus) < -(-9 * keep // 10):
        volume = [-1.0 if i in focus else np.linalg.det(kernel[np.ix_([*focus, i], [*focus, i])]) for i in range(40)]
        if max(volume) < 1e-9 * max(kernel.diagonal()) ** (len(focus) + 1):
            break  # 12 directions span everything: what follows is rounding
        focus.append(int(np.argmax(volume)))
    assert s.rows[s.order.argsort()][: len(focus)].tolist() == focus and s.n_focus == -(-9 * keep // 10)


@few
@given(st.integers(0, 10**6), st.integers(1, 39), st.sampled_from([torch.float32, torch.bfloat16]))
def test_focus_is_untouched_and_anchors_are_convex_means(seed, keep, dtype):
    tokens = sample(seed, dtype=dtype)
    (s,) = FSR(keep=keep)([tokens])
    assert s.kept == keep == s.n_focus + s.n_scan
    focus = s.stage == Stage.FOCUS
    assert torch.equal(s.features[focus], tokens.features[s.rows[focus]])
    assert bool((s.merged_into[s.merged_into >= 0].unsqueeze(1) == s.rows[~focus]).any(1).all())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for row, feature in zip(s.rows[~focus].tolist(), s.features[~focus]):
        sources = [row, *(s.merged_into == row).nonzero()[:, 0].tolist()]
        weight = s.priority[sources].double()
        if len(sources) == 1 or float(weight[1:].sum()) == 0:
            assert torch.equal(feature, tokens.features[row])
            continue
        share = weight / weight.sum()
        assert float(share.min()) >= 0
        mean = (share[:, None] * tokens.features[sources].double()).sum(0)
        torch.testing.assert_close(feature.double(), mean, atol=tolerance, rtol=tolerance)


@few
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_the_certificate_tells_the_true_radius(seed, keep):
    tokens = sample(seed)
    (s,) = FSR(keep=keep)([tokens])
    if keep == 40:
        assert s.certificate is None and s.notes
        return
    unit = torch.nn.functional.normalize(tokens.features.double(), dim=-1)
    true = float((1 - (unit @ unit[s.rows].T).amax(1)).max())
    c = s.certificate
    assert c.radius_cos == pytest.approx(true, abs=1e-5)
    assert c.radius_chord == pytest.approx((2 * c.radius_cos) ** 0.5) and c.optimum_at_least == c.radius_chord / 2
    if s.radii is not None and len(s.radii) > 1:
        assert bool((s.radii[1:] <= s.radii[:-1] + 1e-6).all())


def test_the_ends_of_the_options():
    tokens = sample(1)
    for method in (FSR, PaperFSR):
        (no_scan,) = method(keep=10, rho=1.0, max_focus=1.0)([tokens])
        assert no_scan.n_scan == 0
    (some_scan,) = FSR(keep=10)([tokens])
    assert some_scan.n_focus == 9  # of volume Focus takes its share, rounded up
    (capped,) = FSR(keep=10, rho=1.0, focus_by="distinct", max_focus=0.75)([tokens])
    assert capped.n_focus == 7
    (capped,) = FSR(keep=10, max_focus=0.3)([tokens])
    assert capped.n_focus <= 3
    (no_relevance,) = FSR(keep=10, relevance="none")([tokens])
    (alpha_zero,) = FSR(keep=10, alpha=0.0)([tokens])
    assert torch.equal(no_relevance.rows, alpha_zero.rows)
    (without,) = FSR(keep=10, relevance="none")([VisualTokens(features=tokens.features, saliency=tokens.saliency)])
    assert torch.equal(without.rows, no_relevance.rows)
    (top_k,) = PaperFSR(keep=10, focus_mass="top_k")([tokens])
    assert top_k.focus_wanted <= 10


@pytest.mark.parametrize(
    "options",
    [
        dict(alpha=-1), dict(beta=float("nan")), dict(rho=0), dict(rho=1.1), dict(kappa=-0.1), dict(max_focus=1.5),
        dict(max_focus=True), dict(focus_by="mass"), dict(focus_mass="some"), dict(focus_mass="top_k"),
        dict(relevance="maybe"), dict(agree=1.1), dict(lift=-0.1),
        dict(normalise="zscore"), dict(distance="euclid"), dict(per="pixel"),
    ],
)  # fmt: skip
def test_every_option_out_of_range_is_an_error(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        FSR(**options)


def test_gradients_reach_the_features():
    tokens = sample(2)
    features = tokens.features.requires_grad_()
    (s,) = FSR(keep=8)([VisualTokens(features=features, saliency=tokens.saliency, relevance=tokens.relevance)])
    s.features.sum().backward()
    sources = set(s.rows.tolist()) | set((s.merged_into >= 0).nonzero()[:, 0].tolist())
    touched = features.grad.abs().sum(-1).nonzero()[:, 0].tolist()
    assert set(touched) <= sources and set(s.rows[s.stage == Stage.FOCUS].tolist()) <= set(touched)
    (same,) = FSR(keep=8)([sample(2)])
    assert torch.equal(same.features, s.features.detach()) and torch.equal(same.rows, s.rows)
