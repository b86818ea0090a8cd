"""Scores on made-up answers whose numbers can be counted by hand."""

from __future__ import annotations

import json

import pytest

from fsr.evaluation.question_set import KINDS, build
from fsr.evaluation.record import Outcome
from fsr.evaluation.score import Scorer, plain
from fsr.evaluation.tables import comparison_tables, markdown, p_value, text

WRONG = "nonsense"


@pytest.fixture(scope="module")
def questions():
    return build("validation", 0, 80)


def outcome(i, answer, **changes):
    known = dict(kept=16, focus=6, scan=10, wanted=20, radius=0.5, on_asked=0.25, on_big=None, seen=0.5, found=1.0)
    return Outcome(item=i, answer=answer, **(known | changes))


def answers(questions, wrong=lambda i, kind: False, **changes):
    """Every question answered right, except where `wrong` says so."""
    return [
        outcome(i, WRONG if wrong(i, item.question.kind) else item.question.answer, **changes)
        for i, item in enumerate(questions.items)
    ]


def test_answers_are_compared_as_words():
    assert plain("A dog.") == plain("dog") == "dog"
    assert plain("e H") == plain("EH") == "eh"
    assert plain("2") == plain("two")
    assert plain("Top-left") == "top-left"
    assert plain("") == "" and plain("a") == "a"


def test_summary_by_hand(questions):
    # 10 questions of each of 8 kinds. Unpruned: all right but count (all wrong).
    full = answers(questions, lambda i, kind: kind == "count")
    scorer = Scorer(questions, full)
    assert scorer.solved == [k for k in KINDS if k != "count"]
    of_kind = {k: [i for i, it in enumerate(questions.items) if it.question.kind == k] for k in KINDS}
    lost = set(of_kind["color"][:5])
    pruned = answers(questions, lambda i, kind: i in lost)  # count is right here, half of color is lost
    s = scorer.summary([pruned])
    assert s["accuracy"]["value"] == pytest.approx(75 / 80)
    assert s["accuracy_by_kind"]["color"] == 0.5 and s["accuracy_by_kind"]["count"] == 1.0
    assert s["accuracy_solved"]["value"] == pytest.approx(65 / 70)
    assert s["loyalty"]["value"] == pytest.approx(65 / 80)
    # count is 0 unpruned, so it is no part of any share
    assert s["share_of_unpruned"]["ratio_of_means"]["value"] == pytest.approx(65 / 70)
    assert s["share_of_unpruned"]["mean_of_ratios"]["value"] == pytest.approx(6.5 / 7)
    assert s["right"] == ["".join("0" if i in lost else "1" for i in range(80))]
    assert s["tokens"] == 16 and s["share_of_budget_on_asked"] == 0.25
    assert s["share_of_budget_on_big_distractor"] is None
    assert s["focus"] == {
        "wanted_median": 20.0,
        "wanted_histogram": {"20": 80},
        "taken_mean": 6.0,
        "no_scan": 0.0,
    }
    json.dumps(s, allow_nan=False)


def test_pairs_and_seeds(questions):
    full = answers(questions)
    scorer = Scorer(questions, full)
    fsr = answers(questions, lambda i, kind: i < 2)
    seeds = [answers(questions, lambda i, kind: 1 <= i < 11), answers(questions, lambda i, kind: i < 3)]
    s = scorer.summary(seeds, fsr)
    one, two = s["against_fsr"]["runs"]
    assert (one["gains"], one["losses"]) == (1, 9) and (two["gains"], two["losses"]) == (0, 1)
    assert one["p"] == pytest.approx(2 * (1 + 10) / 2**10) and two["p"] == 1.0
    assert s["against_fsr"]["largest_p"] == 1.0
    assert s["accuracy"]["value"] == pytest.approx((70 + 77) / 160)
    assert s["loyalty"]["value"] == s["accuracy"]["value"]


def test_a_model_that_knows_nothing_is_no_crash(questions):
    nothing = answers(questions, lambda i, kind: True)
    scorer = Scorer(questions, nothing)
    assert scorer.solved == []
    s = scorer.summary([nothing], nothing)
    assert s["accuracy_solved"] is None and s["share_of_unpruned"] == {} and s["loyalty"]["value"] == 1.0
    json.dumps(s, allow_nan=False)


def test_paper_tables(questions):
    full = answers(questions, lambda i, kind: kind == "count")
    scorer = Scorer(questions, full)
    fsr = answers(questions, lambda i, kind: i % 10 == 0)
    grid = answers(questions, lambda i, kind: i % 2 == 0, wanted=None)
    rows = [
        {"method": "fsr", "keep": 16, "answer_tokens": 1.25, **scorer.summary([fsr])},
        {"method": "grid", "keep": 16, **scorer.summary([grid], fsr)},
    ]
    result = {"results": rows, "unpruned": scorer.summary([full]), "solved_kinds": scorer.solved}
    tables = comparison_tables(result)
    accuracy, _, against, kinds, spent = tables.values()
    assert [r[0] for r in accuracy] == ["accuracy, %", "unpruned", "**fsr**", "grid"]
    assert accuracy[2][1].startswith("90.0 (")
    assert against[1] == ["grid", "+40.0 (32 - 0; < 1e-9)"]
    assert len(kinds[0]) == 10 and spent[2][-2] == "-"
    assert [row[-1] for row in spent] == ["answer, tokens", "1.25", "-", "-"]  # older results do not have it
    assert markdown(accuracy).splitlines()[1] == "|---|---:|"
    assert "**" not in text(accuracy)


def test_p_values_are_short():
    assert [p_value(p) for p in (0.5, 0.012, 0.001, 0.0004, 3e-9, 0.0)] == [
        "0.500",
        "0.012",
        "0.001",
        "< 1e-3",
        "< 1e-8",
        "< 1e-12",
    ]
