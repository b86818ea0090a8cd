"""What the plug-in accepts, without an engine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from fsr import FSR
from fsr.adapters.gemma4 import Gemma4Adapter
from fsr.adapters.internvl import InternVLAdapter
from fsr.adapters.qwen3_vl import Qwen3VLAdapter
from fsr.errors import BudgetError, QuestionError, RelevanceError, UnsupportedModelError, UsageError
from fsr.methods import get
from fsr.methods.picture_budgets import by_age
from fsr.serving.vllm import ARCHITECTURES, overrides
from fsr.serving.vllm.arguments import others
from fsr.serving.vllm.checkpoints import OPT_IN, check_model_type
from fsr.serving.vllm.settings import EngineSettings, Request
from fsr.signals.calibration import RelevanceCalibration, load_calibration


def settings(paired=True, **given):
    return EngineSettings.of(SimpleNamespace(fsr=given), paired)


def keep_of(made, arguments):
    (keep,) = made.keeps_of(arguments, 1)
    return keep


def question_of(made, arguments):
    (question,) = made.questions_of(arguments, 1)
    return question


def test_overrides_carry_a_method():
    given = overrides(FSR(keep=0.2, alpha=2.0), "LlavaForConditionalGeneration", "embedding")
    assert given["architectures"] == ["FSRLlavaForConditionalGeneration"]
    made = EngineSettings.of(SimpleNamespace(**given), True)
    assert (
        made.method == FSR(keep=1.0, alpha=2.0)
        and made.keep == 0.2
        and made.relevance == "embedding"
        and made.reads_question
    )
    with pytest.raises(UnsupportedModelError, match="LlavaNextForConditionalGeneration") as refused:
        overrides(FSR(keep=8), "GemmaForCausalLM")
    assert all(name in str(refused.value) for name in ARCHITECTURES)
    with pytest.raises(UnsupportedModelError, match="ends in -hf"):
        overrides(FSR(keep=8), "InternVLChatModel")
    with pytest.raises(UsageError, match="does not prune before"):
        overrides(get("fastv", keep=8), "LlavaForConditionalGeneration")


def test_a_checkpoint_of_another_family_is_refused_in_one_line():
    check_model_type(SimpleNamespace(model_type="internvl"), InternVLAdapter)
    for kind, hint in [("internvl_chat", "ends in -hf"), ("llava", "name the FSR... class")]:
        with pytest.raises(UnsupportedModelError, match=hint) as refused:
            check_model_type(SimpleNamespace(model_type=kind), InternVLAdapter)
        assert "\n" not in str(refused.value)


def test_families_that_no_device_has_shown_are_refused_by_name(monkeypatch):
    monkeypatch.delenv(OPT_IN, raising=False)
    for kind, adapter in [("qwen3_5", Qwen3VLAdapter), ("qwen3_5_moe", Qwen3VLAdapter), ("gemma4", Gemma4Adapter)]:
        with pytest.raises(UnsupportedModelError, match=f"{kind} inside vLLM(.*){OPT_IN}=1"):
            check_model_type(SimpleNamespace(model_type=kind), adapter)
    for architecture in ("Qwen3_5ForConditionalGeneration", "Gemma4ForConditionalGeneration"):
        with pytest.raises(UnsupportedModelError, match=OPT_IN):
            overrides(FSR(keep=8), architecture)
    monkeypatch.setenv(OPT_IN, "1")
    check_model_type(SimpleNamespace(model_type="gemma4"), Gemma4Adapter)
    given = overrides(FSR(keep=8), "Qwen3_5MoeForConditionalGeneration")
    assert given["architectures"] == ["FSRQwen3_5MoeForConditionalGeneration"]


def test_a_calibration_beside_the_weights(tmp_path):
    """What `prune` reads there, the engine reads too; it changes what a picture's tokens are kept by."""
    file = tmp_path / "relevance.json"
    RelevanceCalibration("embedding", None, -1, embedding_words="strongest").save(file)
    config, folder = SimpleNamespace(fsr={"keep": 9}), str(tmp_path)
    made = EngineSettings.of(config, False, folder)
    assert made.relevance == "embedding" and made.reads_question and made.calibration == load_calibration(file)
    assert EngineSettings.of(config, True, folder).calibration is None  # a family with a text tower
    hawk = EngineSettings.of(SimpleNamespace(fsr={"keep": 9, "method": "hawk"}), False, folder)
    assert hawk.relevance == "first-layer" and hawk.calibration is None
    asked_for = EngineSettings.of(SimpleNamespace(fsr={"keep": 9, "relevance": str(file)}), True)
    assert asked_for.relevance == "embedding" and asked_for.calibration == made.calibration
    plain = EngineSettings.of(SimpleNamespace(fsr={"keep": 9, "relevance": "embedding"}), False, folder)
    assert plain.calibration is None
    file.write_text("{}")
    with pytest.raises(RelevanceError, match="fsr calibrate"):
        EngineSettings.of(config, False, folder)


def test_settings_of_the_engine():
    assert settings(keep=9).method == FSR(keep=1.0) and settings(keep=9).keep == 9
    assert not settings(method="visionzip", keep=54).reads_question
    off = settings(keep=0)
    assert keep_of(off, {}) == 0 and keep_of(off, {"fsr_keep": 12}) == 12
    without = settings(paired=False, keep=9)
    assert not without.reads_question and without.method.relevance == "none"
    assert settings(paired=False, method="hawk").relevance == "first-layer"
    with pytest.raises(UsageError, match="fsr calibrate"):
        settings(relevance="mine.json")
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
    assert keep_of(made, {"fsr_keep": 0}) == 0 and keep_of(made, {"fsr_keep": 0.5}) == 0.5 and keep_of(made, {}) == 16
    for bad in (-1, 1.5, "many", True, False, None):
        with pytest.raises(BudgetError, match="fsr_keep"):
            keep_of(made, {"fsr_keep": bad})
    for bad in ("", " ", 3, "x" * 4097):
        with pytest.raises(QuestionError, match="fsr_question"):
            question_of(made, {"fsr_question": bad})
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


def test_a_budget_and_a_question_per_picture():
    made = settings(keep={"newest": 0.5, "older": 0.1, "oldest": 32, "recent": 2}, question_for="newest")
    assert made.keeps_of({}, 4) == [32, 32, 0.1, 0.5] and made.keeps_of({}, 1) == [0.5] and made.keeps_of({}, 0) == []
    assert made.asked({}, 3) == [False, False, True]
    assert made.asked({"fsr_question_for": "all"}, 2) == [True, True]
    assert (
        made.asked({"fsr_question_for": "own"}, 2) == [True, True] and made.which({"fsr_question_for": "own"}) == "own"
    )
    assert settings(method="cdpruner", question_for="own").question_for == "own"
    assert made.keeps_of({"fsr_keep": [9, 0, 0.5]}, 3) == [9, 0, 0.5]
    assert made.keeps_of({"image_pruning_rate": [0.5, 0]}, 2) == [0.5, 0]
    assert made.questions_of({"fsr_question": ["where?", None]}, 2) == ["where?", None]
    given = overrides(FSR(keep=by_age(newest=0.5, older=0.1, oldest=9)), "LlavaForConditionalGeneration")
    assert EngineSettings.of(SimpleNamespace(**json.loads(json.dumps(given))), True).keeps_of({}, 2) == [0.1, 0.5]
    for bad, hint in [({"fsr_keep": [9]}, "1 value and the request 2"), ({"fsr_keep": [9, -1]}, "fsr_keep"),
                      ({"fsr_keep": []}, "0 values"), ({"image_pruning_rate": [0.5, 2]}, "below 1")]:  # fmt: skip
        with pytest.raises(BudgetError, match=hint):
            made.keeps_of(bad, 2)
    with pytest.raises(BudgetError, match="fsr_question has 1 value and"):
        made.questions_of({"fsr_question": ["where?"]}, 2)
    with pytest.raises(UsageError, match="'all', 'newest' or 'own'"):
        made.asked({"fsr_question_for": "oldest"}, 2)
    for bad, hint in [({"keep": [3, 4]}, "belongs to one request"), ({"keep": {"new": 3}}, "no budget by age"),
                      ({"question_for": "last"}, "'all', 'newest' or 'own'"),
                      ({"method": "cdpruner", "question_for": "newest"}, "question_for='all'")]:  # fmt: skip
        with pytest.raises(ValueError, match=hint):
            settings(**bad)
    with pytest.raises(UsageError, match="before any picture is seen"):
        overrides(FSR(keep=[3, 4]), "LlavaForConditionalGeneration")
