"""Signals made worse, and what the plane of them says."""

import numpy as np
import pytest
import torch

from fsr.cli import main
from fsr.errors import UsageError
from fsr.evaluation.plane_verdict import Plane, sign_flips, verdict
from fsr.evaluation.qualities import (
    RELEVANCE,
    SALIENCY,
    Quality,
    plane,
    poorer_relevance,
    poorer_saliency,
    smooth_noise,
)
from fsr.evaluation.trials import trials_of
from fsr.stages.evidence import agreement, lift, shared
from fsr.tokens import Geometry


def test_noise_is_smooth_fixed_and_of_unit_variance():
    raster = Geometry.raster(12, 10)
    draws = torch.stack([smooth_noise(raster, "picture", i) for i in range(300)]).view(300, 12, 10)
    assert torch.equal(draws[3].flatten(), smooth_noise(raster, "picture", 3))
    assert not torch.equal(draws[3], draws[4])
    assert draws.var() == pytest.approx(1, abs=0.05)
    beside, apart = (draws[:, 5, 4] * draws[:, 5, 5]).mean(), (draws[:, 5, 2] * draws[:, 5, 5]).mean()
    assert beside == pytest.approx(2 / 3, abs=0.15) and apart == pytest.approx(0, abs=0.2)


def test_levels_of_relevance_and_kinds_of_saliency():
    raster, scores = Geometry.raster(6, 6), torch.linspace(0, 1, 36)
    assert torch.equal(poorer_relevance(scores, raster, "100", 1), scores)
    noise = smooth_noise(raster, 1)
    assert torch.equal(poorer_relevance(scores, raster, "chance", 1), noise)
    torch.testing.assert_close(poorer_relevance(scores, raster, "66", 1), scores + 2 * scores.std(correction=0) * noise)
    owner = torch.full((36,), -1)
    owner[:4], owner[4:6] = 0, -2
    assert torch.equal(poorer_saliency(scores, owner, "tower", 1), scores)
    object_map = poorer_saliency(scores, owner, "object", 1)
    assert float(object_map[:6].mean()) > 0.6 > 0.4 > float(object_map[6:].mean())
    sinks = poorer_saliency(scores, owner, "sinks", 1)
    raised = (sinks != scores).nonzero().flatten()
    assert len(raised) == 3 and bool((owner[raised] == -1).all()) and bool((sinks[raised] == 3).all())


def test_a_quality_counts_as_far_as_it_is_read():
    assert len(plane()) == len(RELEVANCE) * len(SALIENCY) == len(set(plane()))
    keys = {name: {t.key for q in plane() for t in trials_of(name, 8, quality=q)} for name in ("fsr", "cdpruner")}
    assert len(keys["fsr"]) == 15 and len(keys["cdpruner"]) == 5
    assert len({t.key for q in plane() for t in trials_of("farthest", 8, quality=q)}) == 3
    assert len({t.key for q in plane() for t in trials_of("divprune", 8, quality=q)}) == 1
    assert trials_of("fsr", 8, quality=Quality("66"))[0].settings["quality"]["relevance"] == "66"


@pytest.mark.parametrize("words", [["--relevance-quality", "50"], ["--saliency-quality", "eyes"]])
@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_an_unknown_quality_is_an_error_with_the_list(command, words, capsys):
    assert main([command, *words]) == 2
    told = capsys.readouterr().err
    assert words[1] in told and ("chance" in told or "sinks" in told)


def test_verdict_counts_what_beats_fsr_and_by_how_much_it_leads():
    rng = np.random.default_rng(0)
    pictures = np.repeat(np.arange(100), 4)
    good, bad = rng.random((1, 400)) < 0.9, rng.random((1, 400)) < 0.5
    cells = [("100", "tower"), ("66", "tower")]
    right = {("fsr", 8, *cells[0]): good, ("fsr", 8, *cells[1]): bad}
    right |= {("other", 8, *cells[0]): bad, ("other", 8, *cells[1]): good}
    right |= {("late", 8, *c): np.ones((1, 400), bool) for c in cells}
    right |= {("worst", 8, *c): np.zeros((1, 400), bool) for c in cells}
    found = verdict(Plane(right, pictures, frozenset({"late"})))
    assert [(b["method"], b["relevance"]) for b in found["beaten"]] == [("other", "66")]
    assert found["best_other"] == "other" and found["lead"]["value"] == pytest.approx(0)
    assert found["fsr_minus"]["worst"]["all"]["p"] < 1e-3 < found["fsr_minus"]["other"]["all"]["p"]
    assert "late" not in found["fsr_minus"] and found["means"]["late"]["all"] == 1


def test_sign_flips_of_nothing_and_of_much():
    pictures = np.arange(50)
    assert sign_flips(np.zeros(50), pictures) == 1
    assert sign_flips(np.ones(50), pictures) < 1e-3


def test_evidence_is_shared_among_look_alikes():
    """Five equal tokens and five others: a spike on one of the five is shared, one on a lonely token stays."""
    like = torch.eye(6)[[0, 0, 0, 0, 0, 1, 2, 3, 4, 5]][None]
    spike, lonely = torch.zeros(1, 10), torch.zeros(1, 10)
    spike[0, 2], lonely[0, 7] = 1, 1
    cosines = like @ like.mT
    one, other = shared(cosines, spike, lonely)
    torch.testing.assert_close(one[0, :5], torch.full((5,), 0.2), atol=1e-3, rtol=0)
    assert float(other[0, 7]) > 0.99
    assert float(agreement(spike, one)) < 0.2 < 0.9 < float(agreement(lonely, other))
    assert float(agreement(torch.ones(1, 10), torch.ones(1, 10))) == 1


def test_lift_rises_with_the_share():
    assert lift(8, 160, 0.05) == pytest.approx(0.5) and lift(1, 160, 0.05) < 0.02 and lift(80, 160, 0.05) > 0.98
    assert lift(80, 160, 0.0) == 0


def test_unknown_levels():
    for wrong in (dict(relevance="50"), dict(saliency="eye")):
        with pytest.raises(UsageError, match="use"):
            Quality(**wrong)
