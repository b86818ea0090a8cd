"""Pruning inside vLLM, as a plug-in:

    LLM(model, hf_overrides=overrides(FSR(keep=64), "LlavaForConditionalGeneration"))

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`). It adds model classes under names
of their own and changes nothing else: a model is pruned only where `hf_overrides` names one of them. On the command
line:

    python -m vllm.entrypoints.openai.api_server --model llava-hf/llava-1.5-7b-hf \\
      --hf-overrides '{"architectures": ["FSRLlavaForConditionalGeneration"], "fsr": {"keep": 64}}'

| file | idea |
|---|---|
| `checkpoints` | which checkpoints are served, and which are refused by name |
| `settings`, `arguments` | what the engine and a single request ask for, and in which words |
| `gateway` | a door in front of the server that takes only these words from clients |
| `processing` | the front end: K placeholders announced, the question found, both in the cache key |
| `vision` | the engine: the tower watched, tokens chosen by the same methods and adapters as everywhere else |
| `failures`, `scheduling`, `config_hooks` | a picture that cannot be chosen from costs its own request only |
| `memory` | a picture that is encoded again keeps its choice |
| `mrope` | kept tokens keep their three-dimensional positions |
| `first_layer` | relevance from a first attention layer as vLLM builds it |
| `taps`, `metrics` | queries and keys of vLLM's vision attention; what was kept, and how long it took |
| the others (`llava`, `qwen3_vl`, ...) | the model classes |
"""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from typing import Any

from fsr.errors import UnsupportedModelError, UsageError
from fsr.methods.base import Method
from fsr.methods.picture_budgets import ByAge
from fsr.serving.vllm.checkpoints import check_shown
from fsr.serving.vllm.config_hooks import hook

__all__ = ["ARCHITECTURES", "SUPPORTED", "overrides", "register"]

# The engine's own architecture -> module and class here. Only strings: `register` runs in every process of the engine.
ARCHITECTURES = {
    "LlavaForConditionalGeneration": "fsr.serving.vllm.llava:FSRLlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration": "fsr.serving.vllm.llava_next:FSRLlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration": (
        "fsr.serving.vllm.llava_onevision:FSRLlavaOnevisionForConditionalGeneration"
    ),
    "InternVLForConditionalGeneration": "fsr.serving.vllm.internvl:FSRInternVLForConditionalGeneration",
    "Gemma3ForConditionalGeneration": "fsr.serving.vllm.gemma3:FSRGemma3ForConditionalGeneration",
    "Qwen2VLForConditionalGeneration": "fsr.serving.vllm.qwen2_vl:FSRQwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "fsr.serving.vllm.qwen2_vl:FSRQwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration": "fsr.serving.vllm.qwen3_vl:FSRQwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration": "fsr.serving.vllm.qwen3_vl:FSRQwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration": "fsr.serving.vllm.qwen3_5:FSRQwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration": "fsr.serving.vllm.qwen3_5:FSRQwen3_5MoeForConditionalGeneration",
    "Gemma4ForConditionalGeneration": "fsr.serving.vllm.gemma4:FSRGemma4ForConditionalGeneration",
}
# The hooks into vLLM's processors and models are semi-private and change between its minor releases.
SUPPORTED = ((0, 32), (0, 33))
# What a config calls the families that `check_shown` judges.
_TYPES = {
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe",
    "Gemma4ForConditionalGeneration": "gemma4",
}


def register() -> None:
    """Add the pruned architectures to vLLM's registry. Called by vLLM, in every process, any number of times."""
    import vllm

    found = tuple(int(part) for part in vllm.__version__.split(".")[:2] if part.isdigit())
    if found not in SUPPORTED:
        # An error here would stop engines that never asked for pruning.
        logging.getLogger("vllm.fsr").warning(
            "fsr knows vLLM %s and this is %s: its architectures are not registered, no picture will be pruned. "
            "Install one of these releases (pip install 'vllm>=%s,<%s'), or an fsr-vlm that knows this one.",
            " and ".join(_dotted(s) for s in SUPPORTED),
            vllm.__version__,
            _dotted(SUPPORTED[0]),
            _dotted((SUPPORTED[-1][0], SUPPORTED[-1][1] + 1)),
        )
        return
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    for stock, place in ARCHITECTURES.items():
        name = place.partition(":")[2]
        vllm.ModelRegistry.register_model(name, place)
        # What vLLM settles by an architecture's name (Qwen3.5's cache dtype, Gemma 4's attention backend).
        MODELS_CONFIG_MAP[name] = hook(MODELS_CONFIG_MAP.get(stock, VerifyAndUpdateConfig))


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def overrides(method: Method, architecture: str, relevance: str = "auto") -> dict[str, Any]:
    """The value of `hf_overrides` (as JSON: `--hf-overrides`) that serves a model pruned by `method`.

    Args:
        method: prunes before the language model; its budget is the engine's default.
        architecture: what the checkpoint's config.json calls it, for example "LlavaForConditionalGeneration".
        relevance: as for `prune`, or a folder with a `text_tower/` (see `fsr.signals.clip_twin.save_twin`).

    Raises:
        UnsupportedModelError: an architecture without a class here, or with one that no device has shown.
        UsageError: a method that does not prune before the language model.
    """
    if not isinstance(method, Method):
        raise UsageError(
            f"{getattr(method, 'name', method)} does not prune before the language model, which is all that can be "
            "done inside vLLM: choose another method."
        )
    place = ARCHITECTURES.get(architecture)
    if place is None:
        why = " (take the checkpoint whose name ends in -hf)" if architecture == "InternVLChatModel" else ""
        raise UnsupportedModelError(
            f"no pruned class for {architecture} in vLLM{why}: there is one for {', '.join(ARCHITECTURES)}."
        )
    check_shown(_TYPES.get(architecture, ""))
    chosen = {f.name: getattr(method, f.name) for f in fields(method)}
    changed = {f.name: chosen[f.name] for f in fields(method) if f.name != "keep" and chosen[f.name] != f.default}
    keep = asdict(method.keep) if isinstance(method.keep, ByAge) else method.keep
    if not isinstance(keep, int | float | dict):
        raise UsageError(
            "vLLM lays out placeholders before any picture is seen: give keep as a number, or by_age(...)."
        )
    settings = {"method": method.name, "keep": keep, "relevance": relevance, "options": changed}
    return {"architectures": [place.partition(":")[2]], "fsr": settings}
