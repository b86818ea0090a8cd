"""The base of all methods: what a budget means, scopes, registration."""

from dataclasses import dataclass

import pytest
import torch

from fsr.errors import BudgetError, FeatureError, UsageError
from fsr.methods import FSR, Method, available, get, register
from fsr.methods.base import Picks, certify
from fsr.tokens import Geometry, VisualTokens


@dataclass(frozen=True)
class First(Method):
    """Keeps the first k rows."""

    name = "first-rows-of-the-test"

    def pick(self, tokens, k):
        rows = torch.arange(k).expand(tokens.features.shape[0], k)
        return Picks(rows=rows, stage=torch.zeros_like(rows))


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.01, -0.5, True, "16", None, float("nan")])
def test_budgets_that_make_no_sense(keep):
    with pytest.raises(BudgetError, match="token"):
        First(keep=keep)


@pytest.mark.parametrize(
    ("keep", "n", "k"), [(16, 144, 16), (0.11, 144, 16), (1.0, 144, 144), (0.001, 144, 1), (500, 144, 144), (1, 1, 1)]
)
def test_tokens_and_shares(keep, n, k):
    (s,) = First(keep=keep)([VisualTokens(features=torch.rand(n, 4))])
    assert s.kept == k == First(keep=keep).budget(n)


def test_frames_and_tiles_share_nothing():
    frame = torch.arange(30) // 10
    geometry = Geometry(torch.rand(30, 4), torch.zeros(30, dtype=torch.long), frame)
    tokens = VisualTokens(features=torch.rand(30, 4), geometry=geometry)
    (s,) = First(keep=2, per="frame")([tokens])
    assert s.rows.tolist() == [0, 1, 10, 11, 20, 21] and First(keep=2, per="frame").budget_of(tokens) == 6
    (s,) = First(keep=0.5, per="frame")([tokens])
    assert s.kept == 15


def test_scores_of_a_tile_keep_the_scale_of_the_whole_image():
    seen = []

    @dataclass(frozen=True)
    class Spy(First):
        name = "spy"
        needs = frozenset({"saliency"})

        def pick(self, tokens, k):
            seen.append(tokens.saliency_span)
            return super().pick(tokens, k)

    tile = torch.arange(8) // 4
    geometry = Geometry(torch.rand(8, 4), tile, torch.zeros(8, dtype=torch.long))
    saliency = torch.arange(8).float()
    Spy(keep=1, per="tile")([VisualTokens(features=torch.rand(8, 2), saliency=saliency, geometry=geometry)])
    assert all(torch.equal(row, torch.tensor([0.0, 7.0])) for span in seen for row in span)


def test_wrong_shapes_are_errors():
    good = torch.rand(6, 3)
    for tokens in (
        VisualTokens(features=torch.rand(2, 6, 3)),
        VisualTokens(features=torch.rand(0, 3)),
        VisualTokens(features=good, saliency=torch.rand(5)),
        VisualTokens(features=good, relevance=torch.full((6,), torch.inf)),
        VisualTokens(features=good, saliency=torch.tensor([0.1, torch.nan, 0.2, 0.3, 0.4, 0.5])),
    ):
        with pytest.raises(FeatureError):
            FSR(keep=2, relevance="none")([tokens])


def test_registry():
    with pytest.raises(UsageError, match="choose one of"):
        get("nothing")
    with pytest.raises(UsageError, match="it takes keep"):
        get("fsr", kepe=3)
    assert get("fsr", keep=3) == FSR(keep=3) and "fsr" in available()
    for name in ("", "Upper", "with space"):
        with pytest.raises(UsageError, match="lower-case"):
            register(type("Bad", (First,), {"name": name}))
    with pytest.raises(UsageError, match="registered already"):
        register(type("Other", (First,), {"name": "fsr"}))
    assert available()["fsr"] is FSR


def test_certificates():
    c = certify(0.5)
    assert (c.radius_chord, c.optimum_at_least) == (1.0, 0.5)
    assert certify(-1e-9).radius_cos == 0.0


def test_an_image_of_structural_rows_only_is_an_error():
    image = VisualTokens(features=torch.rand(6, 3), structural=torch.ones(6, dtype=torch.bool))
    with pytest.raises(FeatureError, match="structural"):
        First(keep=2)([image])


def test_a_tile_that_is_kept_whole_does_not_hide_what_the_others_say():
    tile = torch.tensor([0, 0] + [1] * 8)  # the first tile has fewer tokens than its budget
    geometry = Geometry(torch.rand(10, 4), tile, torch.zeros(10, dtype=torch.long))
    g = torch.Generator().manual_seed(0)
    image = VisualTokens(torch.randn(10, 4, generator=g), torch.rand(10, generator=g), geometry=geometry)
    (s,) = FSR(keep=3, per="tile", relevance="none")([image])
    assert s.kept == 5 and s.priority is not None and s.certificate is not None and s.focus_wanted is not None
    assert float(s.priority[2:].max()) > 0
