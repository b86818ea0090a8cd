"""The memory of choices, without an engine."""

from __future__ import annotations

import logging

import torch

from fsr.methods import get
from fsr.serving.vllm import failures
from fsr.serving.vllm.failures import FailedPictures, picked
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


def test_a_picture_that_cannot_be_chosen_from_costs_itself_only():
    """NaN in the saliency of one of three pictures, newlines in another: the others are chosen as alone."""
    torch.manual_seed(0)
    method, failed = get("fsr", keep=4, relevance="none"), []
    structural = torch.arange(12) % 4 == 3
    pictures = [tokens(), tokens(structural=structural), tokens()]
    asked = [(p, 4, 4) for p in pictures]
    good = picked(method, asked, lambda *told: failed.append(told))
    assert not failed and not any(chosen.failed for chosen in good)
    pictures[1].saliency[0] = torch.nan
    pictures[1].features[2] = torch.tensor([1.0, torch.nan, torch.inf, 2.0])
    made = picked(method, asked, lambda *told: failed.append(told))
    assert [number for number, _ in failed] == [1] and "NaN" in str(failed[0][1])
    assert all(torch.equal(made[i].rows, good[i].rows) for i in (0, 2))
    assert [chosen.failed for chosen in made] == [False, True, False]
    # Nothing that is not finite goes on to kernels that others share.
    assert made[1].rows.tolist() == [0, 2, 5, 8] and made[1].features[1].tolist() == [1, 0, 0, 2]
    # It is tried again next time.
    memory = ChoiceMemory()
    memory.put(Request(4, None, "aa"), made[1], pictures[1].features)
    assert len(memory) == 0
    # One alone is no other case.
    assert picked(method, asked[1:2], lambda *told: failed.append(told))[0].failed and failed[1][0] == 0


def test_names_of_failed_pictures_reach_the_other_process(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(failures, "LIMIT", 3)
    monkeypatch.setattr(failures.tempfile, "gettempdir", lambda: str(tmp_path))
    told, heard, other = FailedPictures("7"), FailedPictures("7"), FailedPictures("8")
    assert not heard.names() and not list(tmp_path.iterdir())
    told.add("a" * 64)
    told.add("b" * 64)
    assert list(heard.names()) == ["a" * 64, "b" * 64] and not other.names()
    assert told.path.stat().st_mode & 0o777 == 0o600
    told.add("c" * 64)
    told.add("d" * 64)
    assert [name[0] for name in heard.names()] == ["b", "c", "d"] == [name[0] for name in heard.names()]
    heard.close()
    heard.close()
    assert not list(tmp_path.iterdir())
    # Somebody else's link is not followed; the engine goes on.
    told.path.symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.ERROR, "vllm.fsr"):
        told.add("e" * 64)
    assert not (tmp_path / "elsewhere").exists() and "the scheduler cannot be told" in caplog.text


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
