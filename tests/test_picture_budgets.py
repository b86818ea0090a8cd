"""A budget per picture: lists, functions, by age; which pictures see the question; who counts them how."""

from __future__ import annotations

import copy

import pytest
import torch

import families
from fsr import FSR, prepare, prune
from fsr.adapters import find
from fsr.errors import BudgetError, RelevanceError, UsageError
from fsr.methods import CDPruner, by_age
from fsr.methods.picture_budgets import EachPrompt, Shape, per_picture
from fsr.pipeline.inputs import picture_shapes
from fsr.tokens import Geometry, VisualTokens

PLAIN = dict(relevance="none")
FAMILIES = ["llava", "llava-next", "qwen2.5-vl", "qwen3-vl", "internvl", "gemma3", "smolvlm"]


def kept(report):
    return [s.kept for s in report.selections]


def totals(name, rows):
    return [
        s.total
        for s in prepare(
            families.model_of(name), FSR(keep=1.0, **PLAIN), families.prompts(name, rows)
        ).report.selections
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_picture_keeps_its_own(name):
    model, rows = families.model_of(name), [(2, 0), (1, 0)]
    inputs = families.prompts(name, rows)
    report = prepare(model, FSR(keep=[3, 0.5, 2], **PLAIN), inputs).report
    n = totals(name, rows)
    assert kept(report) == [3, max(1, round(0.5 * n[1])), 2] and report.rows == (0, 0, 1)
    # Every picture keeps what it keeps under that budget alone.
    for i, keep in enumerate((3, 0.5, 2)):
        alone = prepare(model, FSR(keep=keep, **PLAIN), inputs).report.selections[i]
        assert torch.equal(alone.rows, report.selections[i].rows)


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
def test_generate_and_forward_take_them(name):
    model, inputs = copy.deepcopy(families.model_of(name)), families.prompts(name, [(2, 0)])
    with torch.no_grad(), prune(model, FSR(keep=(4, 1), **PLAIN)) as pruned:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert kept(pruned.last) == [4, 1]
        model(**inputs)
        assert kept(pruned.last) == [4, 1]


def test_a_function_is_told_number_count_tokens_and_raster():
    seen = []

    def keep(number, of, tokens, size):
        seen.append((number, of, tokens, size))
        return 2 + number

    report = prepare(
        families.model_of("qwen2.5-vl"), FSR(keep=keep, **PLAIN), families.prompts("qwen2.5-vl", [(2, 0), (1, 0)])
    ).report
    assert kept(report) == [2, 3, 2]
    assert [s[:2] for s in seen] == [(0, 2), (1, 2), (0, 1)]
    assert [s[2] for s in seen] == totals("qwen2.5-vl", [(2, 0), (1, 0)])
    assert all(rows * columns == tokens for _, _, tokens, (rows, columns) in seen)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (1, [0.5]),
        (2, [0.1, 0.5]),
        (4, [0.1, 0.1, 0.1, 0.5]),
        (5, [32, 32, 32, 0.1, 0.5]),
        (7, [32, 32, 32, 0.1, 0.1, 0.1, 0.5]),
        (8, [32] * 6 + [0.1, 0.5]),
    ],
)
def test_by_age(of, expected):
    age = by_age(newest=0.5, older=0.1, oldest=32, recent=3)
    assert [age(i, of, 100, None) for i in range(of)] == expected


def test_by_age_rarely_changes_an_old_picture():
    age, changed = by_age(recent=8), 0
    for of in range(2, 60):
        before = [age(i, of, 100, None) for i in range(of - 1)]
        after = [age(i, of + 1, 100, None) for i in range(of - 1)]
        changed += before != after
    assert changed <= 60 // 8


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ([], "one value per picture"),
        ([3, 0], "keeps nothing"),
        ([3, True], "not a number"),
        ([3, 1.5], "no share"),
        ({0: 3}, "not a number"),
    ],
)
def test_bad_lists(keep, words):
    with pytest.raises(BudgetError, match=words):
        FSR(keep=keep)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ([3], "1 value and the call has 2 pictures"),
        ([3, 2, 1], "3 values and the call has 2 pictures"),
        (lambda number, of, tokens, size: "many", "returned 'many'"),
        (lambda number, of, tokens, size: None, "returned None"),
        (lambda number, of, tokens, size: 0, "returned 0"),
        (lambda number: 3, "failed: TypeError"),
    ],
)
def test_budgets_that_do_not_fit_leave_the_model_alone(keep, words):
    model, inputs = copy.deepcopy(families.model_of("llava")), families.prompts("llava", [(2, 0)])
    before = dict(model.__dict__)
    with pytest.raises(BudgetError, match=words) as caught, prune(model, FSR(keep=keep, **PLAIN)):
        model.generate(**inputs, max_new_tokens=1)
    assert len(str(caught.value).splitlines()) == 1
    assert model.__dict__.keys() == before.keys()


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "qwen3-vl", "glm4v"])
def test_where_sizes_tell_budgets_are_known_before_the_tower_runs(name):
    model, inputs = families.model_of(name), families.prompts(name, [(2, 0), (1, 0)])
    adapter = find(model)
    shapes = picture_shapes(adapter, inputs, inputs["input_ids"])
    seen = prepare(model, FSR(keep=1.0, **PLAIN), inputs).report.selections
    assert [(s.tokens, s.size) for s in shapes] == [(s.total, s.geometry.grid) for s in seen]
    runs = []
    handle = adapter.vision_tower.register_forward_hook(lambda *a: runs.append(1))
    for keep in ([3, 2], lambda number, of, tokens, size: "many"):
        with pytest.raises(BudgetError):
            prepare(model, FSR(keep=keep, **PLAIN), inputs)
    handle.remove()
    assert not runs


def test_one_list_for_every_prompt_of_a_batch():
    model = families.model_of("llava")
    keep = EachPrompt((3, 0.5))
    assert str(keep) == "3,0.5"
    report = prepare(model, FSR(keep=keep, **PLAIN), families.prompts("llava", [(2, 0), (2, 0)])).report
    half = round(0.5 * report.selections[1].total)
    assert kept(report) == [3, half, 3, half]
    with pytest.raises(BudgetError, match="2 values and the prompt 1 picture:"):
        prepare(model, FSR(keep=keep, **PLAIN), families.prompts("llava", [(2, 0), (1, 0)]))
    with pytest.raises(BudgetError, match="no share"):
        EachPrompt((1.5, 2))


@pytest.mark.parametrize(("values", "words"), [((0.5, 0.1, 0), "keeps nothing"), ((2.0, 0.1, 3), "no share")])
def test_bad_ages(values, words):
    with pytest.raises(BudgetError, match=words):
        by_age(*values)
    with pytest.raises(BudgetError, match="at least 1"):
        by_age(recent=0)


def test_one_budget_is_asked_of_many():
    with pytest.raises(BudgetError, match="a single keep"):
        FSR(keep=[1, 2]).budget(10)
    tokens = VisualTokens(torch.randn(6, 4), torch.rand(6), geometry=Geometry.raster(2, 3))
    assert per_picture((2, 3), [Shape.of(tokens)] * 2, [0, 0]) == [2, 3]


# ----------------------------------------------------------------------------------------------------- the question


class Words:
    """Relevance by a made-up rule that depends on question and patch alone."""

    sign, layer, reads_features, pairs_with = 1, -2, False, None

    def __call__(self, patches, question):
        return (patches.float() @ torch.ones(patches.shape[-1])) * (len(question) % 7 - 3)


def test_only_the_newest_picture_sees_the_question():
    model, inputs = families.model_of("llava"), families.prompts("llava", [(3, 0)])
    method = FSR(keep=[3, 3, 3])
    runs = {
        (q, who): prepare(model, method, inputs, q, relevance=Words(), question_for=who).report.selections
        for q in ("a", "abcdef")
        for who in ("all", "newest")
    }
    plain = prepare(model, FSR(keep=3, **PLAIN), inputs).report.selections
    for i in (0, 1):
        for q in ("a", "abcdef"):
            assert torch.equal(runs[q, "newest"][i].rows, plain[i].rows)
            assert runs[q, "newest"][i].relevance is None
    for q in ("a", "abcdef"):
        assert torch.equal(runs[q, "newest"][2].rows, runs[q, "all"][2].rows)
    # The rule matters: the two questions choose differently somewhere.
    assert any(not torch.equal(a.rows, b.rows) for a, b in zip(runs["a", "all"], runs["abcdef", "all"]))


def test_methods_that_need_the_question_say_so():
    model = families.model_of("llava")
    with pytest.raises(RelevanceError, match="question_for='all'"):
        prune(model, CDPruner(keep=3), relevance=Words(), question_for="newest")
    with pytest.raises(UsageError, match="'all' or 'newest'"):
        prune(model, FSR(keep=3, **PLAIN), question_for="oldest")
