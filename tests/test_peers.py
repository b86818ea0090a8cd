"""What every method before the language model promises for any input: exactly K distinct rows in raster order."""

import pytest
import torch

from fsr.asking.answer import answer
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.errors import FeatureError, RelevanceError
from fsr.methods import Method, available, get
from fsr.tokens import Geometry, VisualTokens

METHODS = sorted(name for name, cls in available().items() if issubclass(cls, Method))
N, D = 48, 16


def tokens(seed, n=N, dtype=torch.float32, kind="random", **geometry):
    """Everything that any method may ask for."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, D, generator=g)
    score = lambda: torch.rand(n, generator=g)
    if kind == "duplicates":
        features = features[torch.arange(n) % 3]
    elif kind == "constant":
        features, score = torch.ones(n, D), lambda: torch.full((n,), 0.5)
    elif kind == "zeros":
        features, score = torch.zeros(n, D), lambda: torch.zeros(n)
    geometry.setdefault("geometry", Geometry.raster(n // 8, 8) if n % 8 == 0 else None)
    extra = {
        "keys": torch.randn(n, 8, generator=g),
        "last_keys": torch.randn(n, 8, generator=g),
        "shallow_saliency": score(),
        "first_saliency": score(),
        "last_saliency": score() / n,
    }
    return VisualTokens(
        features=features.to(dtype),
        saliency=score(),
        relevance=score() - 0.5,
        encoder=features.to(dtype),
        extra=extra,
        **geometry,
    )


def check(selection, n, k):
    assert selection.kept == k and selection.total == n
    assert selection.features.shape[0] == k and bool(torch.isfinite(selection.features).all())
    rows = selection.rows
    assert bool((rows[1:] > rows[:-1]).all()) and int(rows[0]) >= 0 and int(rows[-1]) < n
    target = selection.merged_into[selection.merged_into >= 0]
    assert bool(torch.isin(target, rows).all()), "merged into a token that was dropped"
    assert bool((selection.merged_into[rows] == -1).all()), "a kept token was merged away"


@pytest.mark.parametrize("kind", ["random", "duplicates", "constant", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_exactly_k_distinct_rows(name, dtype, kind):
    for k in (1, 2, 7, 17, N - 1):
        (s,) = get(name, keep=k)([tokens(k, dtype=dtype, kind=kind)])
        check(s, N, k)
        assert s.features.dtype == dtype


@pytest.mark.parametrize("name", METHODS)
def test_a_full_budget_leaves_the_image_whole(name):
    for n, keep in ((N, N), (N, 99), (1, 1), (1, 5), (N, 1.0)):
        one = tokens(3, n=n)
        (s,) = get(name, keep=keep)([one])
        assert torch.equal(s.rows, torch.arange(n)) and torch.equal(s.features, one.features) and s.notes


@pytest.mark.parametrize("name", METHODS)
def test_neighbours_in_the_batch_change_nothing(name):
    method = get(name, keep=9)
    images = [tokens(i) for i in range(4)] + [tokens(9, n=40), tokens(5, kind="constant")]
    together = method(images)
    for image, s in zip(images, together):
        (alone,) = method([image])
        assert torch.equal(s.rows, alone.rows) and torch.equal(s.features, alone.features)
        assert torch.equal(s.merged_into, alone.merged_into)


def tiled():
    """Two tiles of 24 tokens with a newline row after each."""
    one = Geometry.raster(3, 8)
    nan, minus = torch.full((1, 4), torch.nan), torch.full((1,), -1)
    label = torch.cat([one.tile, minus, one.tile + 1, minus])
    boxes = torch.cat([one.boxes, nan, one.boxes, nan])
    return Geometry(boxes, label, torch.zeros(50, dtype=torch.long)), label < 0


@pytest.mark.parametrize("name", METHODS)
def test_tiles_get_their_own_budget_and_newlines_are_dropped(name):
    geometry, structural = tiled()
    image = tokens(0, n=50, geometry=geometry, structural=structural)
    (s,) = get(name, keep=5, per="tile")([image])
    check(s, 50, 10)
    assert (geometry.tile[s.rows] == 0).sum() == 5 and not bool(structural[s.rows].any())
    (s,) = get(name, keep=11)([image])
    check(s, 50, 11)
    assert not bool(structural[s.rows].any())


@pytest.mark.parametrize("name", METHODS)
def test_missing_signals_and_broken_numbers_are_errors(name):
    method, full = get(name, keep=4), tokens(1)
    needs = method.signals()
    if needs:
        with pytest.raises(RelevanceError, match=name):
            method([VisualTokens(features=full.features)])
    broken = full.features.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(FeatureError, match="NaN"):
        method(
            [
                VisualTokens(
                    features=broken, saliency=full.saliency, relevance=full.relevance, encoder=broken, extra=full.extra
                )
            ]
        )


@pytest.mark.parametrize("name", METHODS)
def test_the_embedded_model_provides_every_signal(name, mini):
    model, processor = mini
    result = answer(
        model, processor, bundled_scene(), "what color is the umbrella?", get(name, keep=64), max_new_tokens=3
    )
    assert result.selection.kept == 64 and result.report.length_before - result.report.length_after == 80
    assert result.text


@pytest.fixture(scope="module")
def mini():
    return load("mini", "cpu")
