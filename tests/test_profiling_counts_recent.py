"""Analytic counts against torch's own counter for the families of 2025 and 2026: recurrent layers, experts, shared
keys, embeddings per layer, ragged rasters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import family_models_recent as recent
from fsr.errors import UnsupportedModelError
from fsr.methods import FSR, FastV, Late
from fsr.profiling.configs import named
from fsr.profiling.count_report import count_report
from fsr.profiling.counts import FULL, Convention, count, kv_bytes
from fsr.profiling.decoder import DECODERS, language
from fsr.profiling.inputs import synthetic
from fsr.profiling.memory import cache_bytes
from fsr.profiling.mixers import GatedDelta
from fsr.profiling.visual import FAMILIES, visual
from test_profiling_counts import configs

# name -> builder, picture size. 70 text tokens: two chunks of the gated delta rule, more than Gemma 4's window.
TWINS: dict[str, tuple[Callable[[str], Any], tuple[int, int]]] = {
    "qwen3-vl-moe": (recent.qwen_recent("Qwen3VLMoe", experts=True), (40, 48)),
    "qwen3.5": (recent.qwen_recent("Qwen3_5"), (40, 48)),
    "qwen3.5-moe": (recent.qwen_recent("Qwen3_5Moe", experts=True), (40, 48)),
    "glm4v": (recent.glm("Glm4v"), (40, 48)),
    "glm4v-moe": (recent.glm("Glm4vMoe"), (40, 48)),
    "glm46v": (recent.glm("Glm46V"), (40, 48)),
    "qwen2.5-omni": (recent.omni("Qwen2_5Omni"), (40, 48)),
    "qwen3-omni": (recent.omni("Qwen3OmniMoe"), (40, 48)),
    "gemma4": (recent.gemma4, (40, 24)),
    "mistral3": (recent.mistral3, (30, 48)),
    "pixtral": (recent.pixtral, (30, 48)),
}


def triangular(system: torch.Size, columns: torch.Size, *args: Any, out_shape: Any = None, **more: Any) -> int:
    """Twice the MACs of a unit triangular system, which torch's counter does not know: row i takes i per column."""
    batch = torch.Size(columns[:-2]).numel()
    return 2 * batch * sum(range(system[-1])) * columns[-1]


def torch_counts(call: Callable[[], Any]) -> dict[str, int]:
    """FLOPs that torch saw, without rotary tables, which are matrix products in some releases."""
    solve = {torch.ops.aten.linalg_solve_triangular: triangular}
    mode = FlopCounterMode(display=False, depth=20, custom_mapping=solve)
    with torch.no_grad(), mode:
        call()
    seen = {name: sum(ops.values()) for name, ops in mode.get_flop_counts().items()}
    rotary = sum(
        v for name, v in seen.items() if name.endswith(("rotary_emb", "rotary_pos_emb", "positional_embedding"))
    )
    return {"total": seen["Global"] - rotary, "lm_head": sum(v for n, v in seen.items() if n.endswith(".lm_head"))}


@pytest.fixture(scope="module", params=TWINS)
def twin(request: Any) -> Any:
    """Model, config, picture and one prompt. Experts run one by one, so that torch sees the active ones."""
    build, size = TWINS[request.param]
    model = build("eager")
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("eager")
    config = model.config
    config.vision_soft_tokens_per_image = 8  # Gemma 4: six of them are used, two are padding
    picture = visual(config, size)
    return model, config, picture, synthetic(config, picture, size=size, text=70)


def test_counts_equal_what_torch_counts(twin: Any) -> None:
    model, config, picture, inputs = twin
    for rows, head in ((1, "last"), (0, "all")):
        seen = torch_counts(lambda rows=rows: model(**inputs, logits_to_keep=rows, use_cache=True))
        ours = count(config, picture, text=70, convention=Convention(lm_head=head))
        assert 2 * ours.macs["lm_head"] == seen["lm_head"]
        assert 2 * ours.total_macs == seen["total"]


def test_cache_bytes_equal_the_real_cache(twin: Any) -> None:
    model, config, picture, inputs = twin
    cache = model(**inputs, use_cache=True).past_key_values
    assert count(config, picture, text=70, bytes_per_value=4).kv_bytes == cache_bytes(cache)


def test_every_family_and_decoder_is_checked_against_torch() -> None:
    built = [config for _, config, _ in configs().values()] + [build("eager").config for build, _ in TWINS.values()]
    assert {c.model_type for c in built} == set(FAMILIES)
    same = {"gemma2", "qwen3", "smollm3", "ministral3", "mistral"}  # layers that others of the list have too
    assert set(DECODERS) - {c.get_text_config().model_type for c in built} <= same


def test_recurrent_layers_keep_a_state_of_constant_size() -> None:
    llm = language(TWINS["qwen3.5"][0]("eager").config)
    few, many = kv_bytes(llm, [10] * 4), kv_bytes(llm, [1000] * 4)
    assert many - few == 990 * 2 * 2 * 8 * 2  # the one attention layer: two heads of 8, keys and values, two bytes
    state = 3 * (4 * 8 * 8 * 4 + 64 * 2 * 2)  # float32 [heads, 8, 8], and two inputs of the convolution
    assert few == state + 10 * 2 * 2 * 8 * 2


def test_one_chunk_of_the_gated_delta_rule_by_hand() -> None:
    rule = GatedDelta(key_heads=1, value_heads=1, key_dim=2, value_dim=3, kernel=4)
    one = 64 * 64 * (2 + 2 + 3) + 3 * 64 * 2 * 3 + 64 * 63 // 2 * (2 + 3)
    assert rule.channels == 2 + 2 + 3
    assert rule.mixing(5) == one + (5 + 3) * 4 * 7
    assert rule.mixing(65) == 2 * one + (65 + 3) * 4 * 7
    assert rule.projections(10) == 10 * (7 + 3 + 1 + 1 + 3)


def test_windows_and_shared_keys_hold_less() -> None:
    llm = language(TWINS["gemma4"][0]("eager").config)
    assert [layer.shared for layer in llm.stack] == [False, False, True, True]
    assert kv_bytes(llm, [1000] * 4) == 2 * (63 * 2 * 2 * 8 + 1000 * 2 * 2 * 16)


@pytest.mark.parametrize(
    ("name", "why"), [("qwen3.5-9b", "recurrent"), ("gemma-4-e4b", "keys of earlier"), ("gemma-4-31b", "sliding")]
)
def test_methods_that_cannot_run_have_no_count(name: str, why: str) -> None:
    config = named(name)
    picture = visual(config)
    rows = count_report(name, config, picture, [FSR(keep=64)], FULL)["rows"]
    assert rows[1]["times_fewer_llm_flops"] > 1
    for method in (FastV(layer=2, keep=64), Late({1: 64})):
        with pytest.raises(UnsupportedModelError, match=f"{method.name} drops inside .*{why}"):
            count_report(name, config, picture, [method], FULL)
