"""What the plug-in accepts, without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fsr import FSR
from fsr.errors import BudgetError, QuestionError, UnsupportedModelError, UsageError
from fsr.methods import get
from fsr.serving.vllm import ARCHITECTURES, overrides
from fsr.serving.vllm.arguments import others
from fsr.serving.vllm.settings import EngineSettings, Request


def settings(paired=True, **given):
    return EngineSettings.of(SimpleNamespace(fsr=given), paired)


def test_overrides_carry_a_method():
    given = overrides(FSR(keep=0.2, alpha=2.0), "LlavaForConditionalGeneration", "embedding")
    assert given["architectures"] == ["FSRLlavaForConditionalGeneration"]
    made = EngineSettings.of(SimpleNamespace(**given), True)
    assert made.method == FSR(keep=0.2, alpha=2.0) and made.relevance == "embedding" and made.reads_question
    with pytest.raises(UnsupportedModelError, match="LlavaNextForConditionalGeneration") as refused:
        overrides(FSR(keep=8), "GemmaForCausalLM")
    assert all(name in str(refused.value) for name in ARCHITECTURES)
    with pytest.raises(UnsupportedModelError, match="bfloat16 only"):
        overrides(FSR(keep=8), "Qwen3_5ForConditionalGeneration")
    with pytest.raises(UsageError, match="does not prune before"):
        overrides(get("fastv", keep=8), "LlavaForConditionalGeneration")


def test_settings_of_the_engine():
    assert settings(keep=9).method == FSR(keep=9)
    assert not settings(method="visionzip", keep=54).reads_question
    off = settings(keep=0)
    assert off.keep_of({}) == 0 and off.keep_of({"fsr_keep": 12}) == 12
    without = settings(paired=False, keep=9)
    assert not without.reads_question and without.method.relevance == "none"
    for bad, hint in [
        ({"kepe": 9}, "unknown settings kepe"), ({"method": "nope"}, "nope"), ({"keep": -1}, "keep=-1"),
        ({"keep": 9, "options": {"per": "tile"}}, "per='tile'"), ({"method": "fastv"}, "inside the language model"),
        ({"method": "cdpruner", "relevance": "none"}, "cannot do without relevance"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=hint):
            settings(**bad)
    with pytest.raises(UsageError, match="hf-overrides"):
        EngineSettings.of(SimpleNamespace(), True)


def test_what_a_request_asks_for():
    made = settings(keep=16)
    assert made.keep_of({"fsr_keep": 0}) == 0 and made.keep_of({"fsr_keep": 0.5}) == 0.5 and made.keep_of({}) == 16
    for bad in (-1, 1.5, "many", True, False, None):
        with pytest.raises(BudgetError, match="fsr_keep"):
            made.keep_of({"fsr_keep": bad})
    for bad in ("", " ", 3, "x" * 4097):
        with pytest.raises(QuestionError, match="fsr_question"):
            made.question_of({"fsr_question": bad})
    assert others({"fsr_keep": 3, "do_resize": False}) == {"do_resize": False}
    for request in (Request(0), Request(0.25, "où est le chien ?"), Request(64, "x", "3f5a")):
        data = request.to_tensor()
        assert data.dtype == torch.uint8 and Request.from_tensor(data) == request


def test_how_many_placeholders():
    made = settings(keep=16)
    count = made.count
    assert [count(k, 144) for k in (0, 1, 0.5, 144, 500)] == [144, 1, 72, 144, 144]
    # Newlines fall before any patch does.
    assert [count(k, 72, structural=8) for k in (9, 63, 64, 65, 71, 72)] == [9, 63, 64, 64, 64, 72]
