"""Shared fixtures. Models are random, tiny and read-only: a test that changes one must copy it."""

from __future__ import annotations

import pytest
import torch

import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processor():
    return tiny.llava_processor()


@pytest.fixture(scope="session")
def llava():
    return tiny.llava()


@pytest.fixture(scope="session")
def batch(processor):
    """Three rows: two pictures, one picture, none; left padded."""
    chats = [
        tiny.chat(("what colour is the dog ?", 2)),
        tiny.chat(("where is the cat ?", 1)),
        tiny.chat(("how many are there ?", 0)),
    ]
    return tiny.prompts(processor, chats, [tiny.picture(i) for i in range(3)])


@pytest.fixture(scope="session")
def single(processor):
    """One row with one picture, no padding."""
    return tiny.prompts(processor, [tiny.chat(("where is the cat ?", 1))], [tiny.picture(1)])


@pytest.fixture
def feature(request):
    """feature(family, what): say, at the end of a test, what it has shown; `benchmarks/models_matrix.py` makes a table
    of it."""

    def record(family: str, what: str) -> None:
        request.node.user_properties.append(("feature", (family, what)))

    return record
