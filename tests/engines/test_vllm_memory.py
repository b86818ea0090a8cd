"""The memory of choices, without an engine."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import torch

from fsr.methods import get
from fsr.serving.vllm.failures import picked
from fsr.serving.vllm.memory import ChoiceMemory, Chosen
from fsr.serving.vllm.settings import Request
from fsr.tokens import Geometry, VisualTokens


def chosen(whole, rows, merged=False):
    rows = torch.tensor(rows)
    return Chosen(whole[rows] + float(merged), rows)


def test_the_same_rows_of_a_new_encoding():
    memory, whole = ChoiceMemory(), torch.randn(9, 4)
    request = Request(3, "where?", "aa")
    memory.put(request, chosen(whole, [1, 4, 8]), whole)
    again = whole + 0.01
    kept = memory.get(Request(3, "where?", "aa")).again(again)
    assert kept.rows.tolist() == [1, 4, 8] and torch.equal(kept.features, again[kept.rows])
    for other in (
        Request(4, "where?", "aa"),
        Request(3, "what?", "aa"),
        Request(3, None, "aa"),
        Request(3, "where?", "b"),
    ):
        assert memory.get(other) is None
    # The first choice stays; trial runs of the engine leave nothing.
    memory.put(request, chosen(whole, [0, 2, 3]), whole)
    memory.put(Request(3, "where?"), chosen(whole, [0, 2, 3]), whole)
    assert memory.get(request).rows.tolist() == [1, 4, 8] and len(memory) == 1


def test_merged_tokens_are_kept_as_they_were():
    memory, whole = ChoiceMemory(), torch.randn(9, 4, dtype=torch.bfloat16)
    first = chosen(whole, [0, 5], merged=True)
    memory.put(Request(2, None, "aa"), first, whole)
    kept = memory.get(Request(2, None, "aa")).again(whole + 1)
    assert torch.equal(kept.features, first.features) and kept.features.dtype == torch.bfloat16


def test_a_picture_that_cannot_be_chosen_from_costs_itself_only(caplog):
    """NaN in the saliency of one of three pictures, newlines in another: the others are chosen as alone."""
    torch.manual_seed(0)
    method, failed = get("fsr", keep=4, relevance="none"), []
    tally = SimpleNamespace(failed=lambda: failed.append(1))
    structural = torch.arange(12) % 4 == 3
    pictures = [tokens(), tokens(structural=structural), tokens()]
    good = picked(method, [(p, 4, 4) for p in pictures], tally)
    assert not failed
    pictures[1].saliency[0] = torch.nan
    with caplog.at_level(logging.ERROR, "vllm.fsr"):
        made = picked(method, [(p, 4, 4) for p in pictures], tally)
    assert failed == [1] and "saliency holds NaN" in caplog.text
    assert all(torch.equal(made[i].rows, good[i].rows) for i in (0, 2))
    assert made[1].rows.tolist() == [0, 2, 5, 8] and torch.equal(made[1].features, pictures[1].features[made[1].rows])


def tokens(**more):
    return VisualTokens(torch.randn(12, 4), torch.rand(12), geometry=Geometry.raster(3, 4), **more)


def test_both_bounds_let_the_least_recently_used_go():
    whole = torch.randn(9, 4)
    memory = ChoiceMemory(entries=2)
    for name in "abac":
        memory.get(Request(1, None, name))
        memory.put(Request(1, None, name), chosen(whole, [3]), whole)
    assert [memory.get(Request(1, None, n)) is not None for n in "abc"] == [True, False, True]
    memory = ChoiceMemory(limit=100)  # 4 bytes for the row and 16 for a merged token
    for name in range(9):
        memory.put(Request(1, None, str(name)), chosen(whole, [3], merged=True), whole)
    assert len(memory) == 5 and memory.get(Request(1, None, "8")) is not None
