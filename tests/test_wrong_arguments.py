"""Arguments of the Python calls that are none: one line each, before anything runs, and a model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from fsr import FSR, FSRError, QuestionError, UnsupportedModelError, UsageError, prepare, prune
from fsr.asking.chat import chat_inputs
from fsr.methods import Downscale, Saliency
from fsr.pipeline.encode import encode
from fsr.serving.batch.inputs import read_rows
from tiny import picture

METHOD = Saliency(keep=3)  # which needs neither question nor text tower


def refused(call: Any, kind: type[FSRError], hint: str) -> None:
    with pytest.raises(kind, match=hint) as caught:
        call()
    assert type(caught.value) is kind and "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [None, "mini", 7, FSR])
def test_what_is_no_model(model: Any, single: Any) -> None:
    for call in (lambda: prune(model, METHOD), lambda: prepare(model, METHOD, single), lambda: encode(model, single)):
        refused(call, UnsupportedModelError, "is no model: give")


@pytest.mark.parametrize("wrong", ["foo", 3, ["x"], AutoProcessor])
def test_what_is_no_processor(llava: Any, single: Any, wrong: Any) -> None:
    before = dict(llava.__dict__)
    for call in (
        lambda: prune(llava, METHOD, processor=wrong),
        lambda: prune(llava, Downscale(pixels=9) | METHOD, processor=wrong),
        lambda: prepare(llava, METHOD, single, processor=wrong),
    ):
        refused(call, UsageError, "processor=.* is none")
    assert llava.__dict__ == before


@pytest.mark.parametrize("inputs", [None, "x", [1], ("input_ids",)])
def test_what_are_no_inputs(llava: Any, inputs: Any) -> None:
    refused(lambda: prepare(llava, METHOD, inputs, "what ?"), UsageError, "what the processor returned")
    refused(lambda: encode(llava, inputs, METHOD), UsageError, "what the processor returned")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("call", "'generate' or 'forward'"),
        ("positions", "'repack'"),
        ("question_for", "'newest'"),
        ("encoded", "what enc"),
    ],
)
def test_words_that_an_option_does_not_know(llava: Any, single: Any, option: str, hint: str) -> None:
    refused(lambda: prepare(llava, METHOD, single, **{option: "x"}), UsageError, hint)


@pytest.mark.parametrize("question", ["what \ud800", "\udce9", ["what \udfff"]])
def test_half_a_character(llava: Any, processor: Any, single: Any, question: Any) -> None:
    given: dict[str, Any] = {"relevance": "first-layer", "processor": processor}
    refused(lambda: prepare(llava, FSR(keep=3), single, question, **given), QuestionError, "half of a character")
    with prune(llava, FSR(keep=3), **given):
        refused(lambda: llava.generate(**single, question=question), QuestionError, "half of a character")
    text = question if isinstance(question, str) else question[0]
    refused(lambda: read_rows(Path(__file__), text), QuestionError, "--question holds")
    refused(lambda: chat_inputs(processor, picture(1), text), QuestionError, "half of a character")
