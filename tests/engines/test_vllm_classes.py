"""Every class of the plug-in as vLLM finds it, without an engine: also those that wait for a device."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")

from vllm import ModelRegistry
from vllm.config import SchedulerConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from fsr.serving.vllm import ARCHITECTURES, register, scheduling
from fsr.serving.vllm.config_hooks import hook
from fsr.serving.vllm.processing import PrunedProcessing
from fsr.serving.vllm.vision import PrunedVision

# vLLM serves InternVL's "-hf" checkpoints by this class.
STOCK = {"InternVLForConditionalGeneration": "InternS1ForConditionalGeneration"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_class_stands_in_front_of_the_engine_s_own(architecture):
    module, _, name = ARCHITECTURES[architecture].partition(":")
    cls = getattr(importlib.import_module(module), name)
    lineage = [c.__name__ for c in cls.__mro__]
    assert lineage.index(PrunedVision.__name__) < lineage.index(STOCK.get(architecture, architecture))
    factories = cls._processor_factory
    assert issubclass(factories.processor, PrunedProcessing)
    assert factories.processor.adapter_class.model_types == cls.adapter_class.model_types
    # The families answer all that is asked of them.
    for asked in ("signal_layers", "hidden_layers", "fsr_view", "tower_tokens", "part", "features_of", "seen_as"):
        assert getattr(cls, asked) is not getattr(PrunedVision, asked), asked


def test_what_vllm_settles_by_name_holds_for_ours():
    """Qwen3.5's cache dtype and Gemma 4's attention backend are looked up by the architecture's name."""
    register()
    assert {"FSR" + name for name in ARCHITECTURES} <= set(ModelRegistry.get_supported_archs())
    settled = [name for name in ARCHITECTURES if name in MODELS_CONFIG_MAP]
    assert {"Qwen3_5ForConditionalGeneration", "Gemma4ForConditionalGeneration"} <= set(settled)
    for name in ARCHITECTURES:
        assert issubclass(MODELS_CONFIG_MAP["FSR" + name], MODELS_CONFIG_MAP.get(name, VerifyAndUpdateConfig))


@pytest.mark.parametrize(("asynchronous", "kind"), [(True, AsyncScheduler), (False, Scheduler)])
def test_the_scheduler_that_ends_requests_is_found_by_name(asynchronous, kind, caplog, monkeypatch):
    made = []

    class Stock(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_config(vllm_config):
            made.append(vllm_config)

    settings = SchedulerConfig(max_model_len=64, is_encoder_decoder=False, async_scheduling=asynchronous)
    config = SimpleNamespace(scheduler_config=settings)
    hook(Stock).verify_and_update_config(config)
    assert made == [config] and settings.get_scheduler_cls() is scheduling.scheduler
    monkeypatch.setattr(scheduling.EndsFailed, "__init__", lambda self, **given: None)
    found = type(scheduling.scheduler(vllm_config=config, log_stats=False)).__mro__
    assert found[1] is scheduling.EndsFailed and found[2] is kind
    hook(Stock).verify_and_update_config(config)
    assert "not fsr's" not in caplog.text
    settings.scheduler_cls = "mine.Scheduler"
    hook(Stock).verify_and_update_config(config)
    assert settings.scheduler_cls == "mine.Scheduler" and "mine.Scheduler is not fsr's" in caplog.text
