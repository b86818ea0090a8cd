"""The text tower beside the vision tower: what waits for what, told by streams that only write down what happens."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

import tiny
from fsr import FSR, ClipTwin, prepare
from fsr.signals import text_cache
from fsr.signals.text_cache import TextCache

CUDA = torch.device("cuda", 0)


class Stream:
    """Writes down in a common log what a CUDA stream would be told."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def record_event(self):
        self.log.append((self.name, "records"))
        return f"event {self.log.count((self.name, 'records'))} of {self.name}"

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event))


class Vector:
    """A tensor that writes down which streams read it."""

    def __init__(self, log):
        self.log = log

    def record_stream(self, stream):
        self.log.append((stream.name, "reads"))


@pytest.fixture
def log(monkeypatch):
    told, current = [], [Stream("main", [])]
    current[0].log = told

    @contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", told))
    monkeypatch.setattr(torch.cuda, "stream", on)
    return told


def test_the_side_stream_waits_for_what_came_before_and_the_reader_for_the_side_stream(log):
    def embed(question, device):
        log.append((torch.cuda.current_stream(device).name, question))
        return Vector(log)

    texts, tower = TextCache(embed), torch.nn.Identity()
    with texts.beside(tower, ["a", "b", "a"], CUDA):
        tower(torch.zeros(1))
        log.append("the tower runs")
        tower(torch.zeros(1))
    texts("a", CUDA)
    tower(torch.zeros(1))
    assert log == [
        ("main", "records"),
        ("side", "waits for", "event 1 of main"),
        ("side", "a"),
        ("side", "records"),
        ("side", "waits for", "event 1 of main"),
        ("side", "b"),
        ("side", "records"),
        "the tower runs",
        ("main", "waits for", "event 1 of side"),
        ("main", "reads"),
    ]
    texts("c", CUDA)  # not foreseen: on the stream that asks
    assert log[-2:] == [("main", "c"), ("main", "records")]


def test_without_cuda_nothing_runs_early(log):
    asked = []
    texts, tower = TextCache(lambda question, device: asked.append(question) or torch.ones(2)), torch.nn.Identity()
    with texts.beside(tower, ["a"], torch.device("cpu")):
        tower(torch.zeros(1))
        assert not asked and not tower._forward_hooks
    for _ in range(2):
        assert torch.equal(texts("a", torch.device("cpu")), torch.ones(2))
    assert asked == ["a"] and log == []


def test_old_questions_are_forgotten(monkeypatch):
    monkeypatch.setattr(text_cache, "_MOST", 2)
    asked = []
    texts = TextCache(lambda question, device: asked.append(question) or torch.ones(2))
    for question in "abcab":
        texts(question, torch.device("cpu"))
    assert asked == list("abcab")


def test_questions_are_known_before_the_tower_runs(llava, batch, monkeypatch):
    """One with streams at hand would start on them here: the hook sits on this model's tower, for the rows with
    pictures."""
    twin = ClipTwin.from_clip(
        tiny.clip(tower=llava.model.vision_tower), tiny.word_tokenizer(ends=True, longest=16), sign=1
    )
    seen = []

    @contextmanager
    def beside(tower, questions, device):
        handle = tower.register_forward_hook(lambda *a: seen.append((tower, questions, device)))
        yield
        handle.remove()

    monkeypatch.setattr(twin.texts, "beside", beside)
    prepare(llava, FSR(keep=9), batch, question=["one", "two", ""], relevance=twin)
    assert seen == [(llava.model.vision_tower, ["one", "two"], torch.device("cpu"))]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_relevance_with_streams(llava, single):
    import copy

    model = copy.deepcopy(llava).cuda()
    twin = ClipTwin.from_clip(
        tiny.clip(tower=model.model.vision_tower), tiny.word_tokenizer(ends=True, longest=16), sign=1
    )
    there = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in single.items()}
    question = "where is the dog ?"
    beside = prepare(model, FSR(keep=9), there, question=question, relevance=twin).report.selections[0].relevance
    again = prepare(model, FSR(keep=9), there, question=question, relevance=twin).report.selections[0].relevance
    alone = TextCache(twin._embed)(question, beside.device)
    assert torch.equal(beside, again)
    torch.testing.assert_close(alone, twin.embed_text(question, beside.device))
