"""Options of every method: one type and one range, the same in Python, `--option` and `fsr compare`."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr import FSR, FSRError, UsageError
from fsr.asking.options import build_method, keep_value, method_names
from fsr.evaluation.trials import Trial, contenders, trials_of
from fsr.methods import FastV, Method, available, get
from fsr.methods.options import option_value
from fsr.methods.parts import label_of

HUGE = 10**20
NAMES = sorted(n for n in available() if n != "late")  # which takes no plain budget
OPTIONS = [(n, f.name) for n in NAMES for f in dataclasses.fields(available()[n]) if f.name != "keep"]
ODD = [None, True, False, "", "abc", "two", "False", 0, 1, 2, -1, 1.5, 0.25, HUGE, -HUGE, 10**400, math.nan, math.inf]
ODD += [
    -math.inf,
    [],
    [1, 2],
    [2, "x"],
    [HUGE],
    {},
    {"a": 1},
    b"x",
    np.int64(2),
    np.float32(0.5),
    np.nan,
    np.bool_(True),
]
values = st.one_of(
    st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
)


def built(make):
    """The method, or None after one clear line."""
    try:
        return make()
    except FSRError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return None


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.sampled_from(OPTIONS), values)
def test_any_value_is_taken_as_it_is_or_refused_in_one_line(option, value):
    name, field = option
    made = built(lambda: get(name, keep=4, **{field: value}))
    if made is not None:
        kept = getattr(made, field)
        assert kept == (tuple(value) if isinstance(value, list) else value)
        json.dumps(dataclasses.asdict(made))  # what records and jobs write
        hash(made)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(OPTIONS), values.filter(lambda v: not isinstance(v, bytes | np.generic)))
def test_the_command_line_and_compare_mean_the_same(option, value):
    name, field = option
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return
    here = built(lambda: get(name, keep=4, **{field: option_value(text)}))
    assert built(lambda: build_method(name, 4, [f"{field}={text}"])) == here
    if name != "random":
        trial = built(lambda: trials_of(f"{name}:{field}={text}", 4)[0].method)
        assert trial == here


@pytest.mark.parametrize("name", ["cdpruner", "dart", "visionzip"])
@pytest.mark.parametrize("text", ["False", "false", "FALSE"])
def test_false_is_false(name, text):
    assert build_method(name, 13, [f"faithful={text}"]).faithful is False
    assert build_method(name, 13, ["faithful=True"]).faithful is True
    assert trials_of(f"{name}:faithful={text}", 13)[0].method.faithful is False
    for value in ("maybe", "[]", "NaN", "0", '"False"'):
        with pytest.raises(UsageError, match="neither true nor false"):
            build_method(name, 13, [f"faithful={value}"])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("fastv", "layer=two"), ("fastv", "layer=1.5"), ("dart", "layer=1.5"), ("dart", "image_pivots=two"),
        ("dart", f"text_pivots={HUGE}"), ("pyramiddrop", "at=2"), ("pyramiddrop", "drops=two"),
        ("pyramiddrop", f"drops={HUGE}"), ("sparsevlm", "at=2"), ("sparsevlm", "recycle=no"), ("random", "seed=abc"),
        ("random", "seed=1.5"), ("random", f"seed={HUGE}"), ("hired", "alpha=two"), ("scope", "alpha=two"),
        ("visionzip", "contextual=two"), ("visionzip", "contextual=1"), ("vispruner", "ratio=two"),
        ("fsr", f"alpha={HUGE}"), ("fsr", "alpha=" + "9" * 6000), ("fsr", "alpha=" + "[" * 100_000), ("fsr", "rho=0"),
        ("fsr", "per=picture"), ("fsr", "focus_by=1"), ("fsr", "normalise=null"),
    ],
)  # fmt: skip
def test_values_that_were_tracebacks_or_memory(name, option):
    with pytest.raises(UsageError, match=option.partition("=")[0]):
        build_method(name, 4, [option])


def test_lists_become_tuples_and_numpy_becomes_plain():
    drop = build_method("pyramiddrop", 4, ["at=[1, 2]"])
    assert drop.at == (1, 2) and hash(drop) == hash(get("pyramiddrop", keep=4, at=(1, 2)))
    method = FSR(keep=np.int64(4), alpha=np.float32(0.5))
    assert type(method.alpha) is float and Trial("x", method).key == Trial("x", FSR(keep=4, alpha=0.5)).key
    assert keep_value(" 8") == 8 and keep_value(" 11% ") == 0.11


def test_labels_say_what_is_not_usual_and_can_be_typed_again():
    for made in (FSR(keep=4), FSR(keep=4, alpha=0, focus_by="distinct"), get("pyramiddrop", keep=4, at=(1, 2))):
        assert build_method(label_of(made), 4) == made
    assert label_of(get("grid", keep=4)) == "uniform-grid" and label_of(FSR(alpha=0)) == "fsr:alpha=0"
    assert label_of(FSR(keep=8) | FastV(keep=4)) == "fsr | fastv"
    text = "FSR:alpha=0, grid ,pyramiddrop:at=[1, 2],fsr:alpha=0"
    assert method_names(text) == ["fsr:alpha=0", "uniform-grid", "pyramiddrop:at=[1, 2]"]
    assert contenders(text)[1:] == ["fsr:alpha=0", "grid", "pyramiddrop:at=[1, 2]"]
    assert trials_of("pyramiddrop:at=[1, 2]", 4)[0].method == get("pyramiddrop", keep=4, at=(1, 2))
    assert method_names("all,fsr:alpha=0")[-1] == "fsr:alpha=0"


def test_random_tokens_take_no_seed_in_compare():
    with pytest.raises(UsageError, match="give no seed"):
        trials_of("random:seed=7", 4)


def test_plug_ins_with_annotations_of_their_own_are_checked_where_known():
    @dataclasses.dataclass(frozen=True)
    class Mine(Method):
        name = "mine"
        depth: int = 1
        how: "Unknown" = None  # noqa: F821

        def pick(self, tokens, k):
            raise NotImplementedError

    assert Mine(keep=4, how=object()).depth == 1
