"""Signals made worse, and what the plane of them says."""

import numpy as np
import pytest
import torch

from fsr.cli import main
from fsr.errors import UsageError
from fsr.evaluation.plane import plane_of
from fsr.evaluation.plane_tables import plane_tables
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
from fsr.evaluation.tables import heading, points
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


def test_tables_of_the_plane():
    """Every number of the tables is one of the result's."""
    names, keeps = ("fsr", "other", "late"), (16, 4)
    rng = np.random.default_rng(1)
    rate = {"fsr": 0.9, "other": 0.6, "late": 0.95}
    right, results = {}, []
    for name in names:
        for keep in keeps:
            for q in plane():
                key = f"{name}-{keep}-{q.relevance}-{q.saliency}"
                bits = rng.random(400) < rate[name] - (0.2 if q.relevance == "chance" else 0)
                right[key] = "".join("01"[int(b)] for b in bits)
                row = {"method": name, "keep": keep, "relevance": q.relevance, "saliency": q.saliency}
                results.append({**row, "other_budget": name == "late", "runs": [key], "accuracy": float(bits.mean())})
    result = {
        "unpruned": {"accuracy": {"value": 0.97}},
        "text_alone": 0.151,
        "relevance": list(RELEVANCE),
        "saliency": list(SALIENCY),
        "pointing": {**dict.fromkeys(RELEVANCE, 0.5), "chance": None},
        "right": right,
        "pictures": list(np.repeat(np.arange(100), 4)),
        "results": results,
    }
    result["verdict"] = verdict(plane_of(result))
    tables = plane_tables(result)
    means = next(iter(tables.values()))
    assert [row[0] for row in means] == ["accuracy, %", "unpruned", "late", "**fsr**", "other", "text alone"]
    assert means[1][1] == "97.0" and means[-1][1:] == ["15.1", "-", "-"]
    of = lambda name, keep: [r["accuracy"] for r in results if (r["method"], r["keep"]) == (name, keep)]
    clean = next(r["accuracy"] for r in results if (r["method"], r["keep"]) == ("fsr", 4))
    assert means[3][3] == f"{100 * clean:.1f} / {100 * np.mean(of('fsr', 4)):.1f}"
    assert means[3][1] == f"{100 * np.mean(of('fsr', 4) + of('fsr', 16)):.1f}"
    cells = next(rows for title, rows in tables.items() if title.startswith("other:"))
    assert cells[0] == ["accuracy, %", "100 (50 %)", "97 (50 %)", "66 (50 %)", "32 (50 %)", "chance"]
    assert [row[0] for row in cells[1:]] == list(SALIENCY)
    cell = [r["accuracy"] for r in results if (r["method"], r["relevance"], r["saliency"]) == ("other", "32", "sinks")]
    assert cells[3][4] == f"{100 * np.mean(cell):.1f}"
    words = dict(tables["Verdict"])
    assert (
        words["method and cell where one before the language model beats FSR (McNemar p < 0.01)"] == "0 over 30 cells"
    )
    lead = result["verdict"]["lead"]["value"]
    assert f"{100 * lead:+.2f} (" in words["FSR minus the best other (other), plane and all budgets"]
    assert "FSR minus late, mean over the plane" not in words  # another budget is no rival
    assert all(set(map(len, rows)) == {len(rows[0])} for rows in tables.values())


def test_differences_and_headings():
    assert [points(v) for v in (-0.0004, 0.0, 0.0004, -0.01, 0.0104)] == ["+0.0", "+0.0", "+0.0", "-1.0", "+1.0"]
    assert points(0.0095, 2) == "+0.95"
    about = {
        "questions": {"count": 8, "pictures": 2, "split": "test", "seed": 0, "sha256": "a" * 64, "note": None},
        "model": {"sha256": "b" * 64},
        "date": "2026-11-26",
        "unpruned": {"accuracy": {"value": 1.0}},
        "solved_kinds": ["count"],
    }
    poor = {"relevance": "66", "saliency": "tower"}
    assert "Relevance: CLIP text tower." in heading({**about, "relevance": "CLIP text tower", "quality": poor})
    assert "relevance 66, saliency tower" in heading({**about, "source": "CLIP text tower", "quality": poor})
    assert "relevance 66 (read by no method here)" in heading({**about, "relevance": "none", "quality": poor})
    assert "Signals" not in heading({**about, "source": "none", "quality": {"relevance": "100", "saliency": "tower"}})


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


def test_evidence_in_blocks_of_rows():
    """More tokens than one block holds: the means are those of the formula, equal tokens have equal ones, and nothing
    depends on the batch."""
    units = torch.nn.functional.normalize(torch.randn(2, 900, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    units[0, 899] = units[0, 5]
    cosines, score = units @ units.mT, torch.rand(2, 900)
    weight = (cosines.double() / 0.1).softmax(-1)
    (mean,) = shared(cosines, score)
    torch.testing.assert_close(mean.double(), (weight * score.double()[:, None]).sum(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(shared(cosines[1:], score[1:])[0][0], mean[1])
    same = torch.ones(1, 700, 700)
    assert len(shared(same, score[:1, :700])[0].unique()) == 1


def test_lift_rises_with_the_share():
    assert lift(8, 160, 0.05) == pytest.approx(0.5) and lift(1, 160, 0.05) < 0.02 and lift(80, 160, 0.05) > 0.98
    assert lift(80, 160, 0.0) == 0


def test_unknown_levels():
    for wrong in (dict(relevance="50"), dict(saliency="eye")):
        with pytest.raises(UsageError, match="use"):
            Quality(**wrong)
