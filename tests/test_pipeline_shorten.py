"""Shortening prompts and handing features over, without any model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from fsr import FeatureError, UsageError
from fsr.adapters.containers import fresh, rebuild, split_rows
from fsr.pipeline.shorten import gather, inferred_mask, placeholder_units, repacked_positions, shrink

V, P = 9, 0  # placeholder, padding


def rows(*texts):
    """Digits are ids; 'v' is a placeholder, '_' padding."""
    ids = torch.tensor([[V if c == "v" else P if c == "_" else int(c) for c in t] for t in texts])
    return ids, (ids != P).long()


def show(ids):
    return ["".join("v" if i == V else "_" if i == P else str(i) for i in r) for r in ids.tolist()]


def cut(texts, counts, kept, totals=None):
    ids, mask = rows(*texts)
    runs = placeholder_units(ids, V, counts, "image")
    source = shrink(mask, runs, [torch.tensor(k) for k in kept], totals or counts)
    return show(gather(ids, source, P)), source


def test_kept_places_and_padding():
    texts, source = cut(["1vvv2vvv3", "__4vvv567"], [3, 3, 3], [[0], [1, 2], [2]])
    assert texts == ["1v2vv3", "_4v567"]
    assert source.tolist() == [[0, 1, 4, 6, 7, 8], [-1, 2, 5, 6, 7, 8]]


def test_padding_side():
    assert cut(["1vvv", "45vv"], [3, 2], [[0], [0, 1]])[0] == ["__1v", "45vv"]  # none before: left
    assert cut(["_1vv2", "345vv"], [2, 2], [[0], [1]])[0] == ["_1v2", "345v"]


def test_columns_behind_the_last_picture_stay_where_they_are():
    """Counted from the end, for that is how callers count; what a row loses is made up for in front."""
    assert cut(["1vvv2", "4vv5_"], [3, 2], [[0], [0, 1]])[0] == ["__1v2", "4vv5_"]
    assert cut(["1vv2_", "4vv5_"], [2, 2], [[0], [1]])[0] == ["1v2_", "4v5_"]  # padding of the whole batch stays, too
    assert cut(["__1vv23_", "_4vv56__"], [2, 2], [[0], [1]])[0] == ["_1v23_", "4v56__"]
    assert cut(["1v_v2"], [2], [[1]])[0] == ["1_v2"]  # a hole stays a hole
    assert cut(["____", "1vv2"], [2], [[0]])[0] == ["___", "1v2"]


def test_runs_of_another_length():
    """Families whose processor writes one placeholder, or another number, than the model has tokens."""
    assert cut(["1v2", "3v4"], [1, 1], [[0, 5, 7], [2, 3]], [9, 9])[0] == ["1vvv2", "_3vv4"]
    assert cut(["1vvvv2"], [4], [[0, 6]], [9])[0] == ["1vv2"]


def test_a_picture_may_span_runs_but_not_rows():
    assert cut(["1vv2vv3"], [4], [[1, 2]])[0] == ["1v2v3"]
    with pytest.raises(FeatureError, match="two prompts"):
        cut(["1vv", "2vv"], [3, 1], [[0], [0]])
    with pytest.raises(FeatureError, match="3 image placeholders and the pictures give 4"):
        cut(["1vvv"], [4], [[0]])


def test_other_tensors_follow():
    _, source = cut(["1vvv2", "_3vv4"], [3, 2], [[2], [0, 1]])
    labels = torch.arange(10).view(2, 5)
    assert gather(labels, source, -100).tolist() == [[-100, 0, 3, 4], [6, 7, 8, 9]]
    axes = torch.stack([labels, labels * 10])
    assert gather(axes, source, 7).tolist() == [[[7, 0, 3, 4], [6, 7, 8, 9]], [[7, 0, 30, 40], [60, 70, 80, 90]]]
    with pytest.raises(UsageError, match="rows"):
        gather(torch.zeros(3, 5), source, 0)


def test_positions_and_masks():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert repacked_positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 0]]
    ids = torch.tensor([[0, 0, 5, 6]])
    assert inferred_mask(ids, 0, [2]).tolist() == [[0, 0, 1, 1]]
    assert inferred_mask(ids, 0, [2, 0]).tolist() == inferred_mask(ids, None, []).tolist() == [[1, 1, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout(data):
    """Every row keeps its words in order and K placeholders per picture, for any mix of texts, pictures and padding."""
    texts, counts, kept, expected = [], [], [], []
    for _ in range(data.draw(st.integers(1, 4))):
        text, want = "", ""
        for _ in range(data.draw(st.integers(0, 3))):
            words = "".join(str(d) for d in data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3)))
            n = data.draw(st.integers(1, 5))
            keep = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
            text, want = text + words + "v" * n, want + words + "v" * len(keep)
            counts.append(n)
            kept.append(keep)
        texts.append(text + "8")
        expected.append(want + "8")
    if not counts:
        return
    width = max(map(len, texts)) + data.draw(st.integers(0, 2))
    left = data.draw(st.booleans())
    padded = [t.rjust(width, "_") if left else t.ljust(width, "_") for t in texts]
    got, source = cut(padded, counts, kept)
    assert [t.strip("_") for t in got] == expected
    behind = [len(t) - len(t.rstrip("_")) for t in padded]
    assert [len(t) - len(t.rstrip("_")) for t in got] == behind
    assert source.shape[1] == max(len(e) + b for e, b in zip(expected, behind))
    steps = source[source >= 0]
    assert len(steps) == sum(map(len, expected)) + sum(behind)


# ------------------------------------------------------------------------------------------------------- containers


def features(*counts):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, 4, generator=g) for n in counts]


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_stay_lists(kind):
    units = features(5, 3)
    take = [torch.tensor([0, 4]), torch.tensor([1])]
    old = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(1), pooler_output=kind(units))
    new = rebuild(old, [u[r] for u, r in zip(units, take)], take, [5, 3])
    assert type(new) is type(old) and set(new.keys()) == {"pooler_output"}
    assert torch.equal(torch.cat(new.pooler_output), torch.stack([units[0][0], units[0][4], units[1][1]]))


def test_tensors_become_one_row_each():
    """[total K, 1, D] passes the count check, flattening and beam expansion of tensor models, for ragged K."""
    whole = torch.randn(2, 4, 3)
    take = [torch.tensor([0, 2, 3]), torch.tensor([1])]
    new = rebuild(BaseModelOutputWithPooling(pooler_output=whole), [w[r] for w, r in zip(whole, take)], take, [4, 4])
    assert new.pooler_output.shape == (4, 1, 3)
    assert torch.equal(new.pooler_output.flatten(0, 1)[3], whole[1, 1])


def test_deepstack_follows():
    units, deep = features(5, 3), [tuple(features(5, 3)), tuple(features(5, 3))]
    take = [torch.tensor([0, 4]), torch.tensor([1])]
    old = BaseModelOutputWithDeepstackFeatures(pooler_output=tuple(units), deepstack_features=deep)
    new = rebuild(old, [u[r] for u, r in zip(units, take)], take, [5, 3])
    for layer, was in zip(new.deepstack_features, deep):
        assert [torch.equal(a, b[r]) for a, b, r in zip(layer, was, take)] == [True, True]
    copy = fresh(new)
    copy.pooler_output.append(None)
    copy.deepstack_features[0].append(None)
    assert len(new.pooler_output) == 2 and len(new.deepstack_features[0]) == 2


def test_split_rows():
    tiles = torch.arange(12.0).view(3, 2, 2)
    assert [t.shape[0] for t in split_rows(tiles, [4, 2])] == [4, 2]
    assert torch.equal(split_rows(list(tiles), [2, 4])[1], tiles[1:].flatten(0, 1))
