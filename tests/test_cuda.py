"""The whole call on a CUDA device: nothing in `pick` waits for it, and it chooses what the CPU chooses."""

from __future__ import annotations

import copy

import pytest
import torch

import families
from fsr import FSR, prepare, prune
from fsr.kernels import backend_name, triton_there
from fsr.methods import FastV, get
from fsr.tokens import VisualTokens

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

FAMILIES = ("llava", "llava-next", "qwen2.5-vl", "qwen3-vl", "internvl", "gemma3")


def moved(inputs):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


@pytest.fixture(params=FAMILIES)
def pair(request):
    """A tiny model on both devices and its prompt."""
    model = families.model_of(request.param)
    return model, copy.deepcopy(model).cuda(), families.prompts(request.param, [(1, 0)])


@pytest.mark.parametrize("name", ["fsr", "fsr-paper", "cdpruner", "divprune", "farthest"])
def test_picking_never_waits(name):
    method = get(name, keep=64)
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(3, 576, 128, generator=g, device="cuda")
    tokens = VisualTokens(
        x, torch.rand(3, 576, generator=g, device="cuda"), torch.rand(3, 576, generator=g, device="cuda")
    )
    first = method.pick(tokens, 64).rows  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = method.pick(tokens, 64).rows
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)


def test_a_full_budget_changes_no_bit(pair):
    _, model, inputs = pair
    inputs = moved(inputs)
    with torch.no_grad():
        stock = model(**inputs).logits
        with prune(model, FSR(keep=1.0, relevance="none")):
            assert torch.equal(model(**inputs).logits, stock)


def test_the_device_keeps_what_the_cpu_keeps(pair):
    on_cpu, on_device, inputs = pair
    method = FSR(keep=3, relevance="none")
    here = prepare(on_cpu, method, inputs).report
    there = prepare(on_device, method, moved(inputs)).report
    for a, b in zip(here.selections, there.selections):
        assert torch.equal(a.rows, b.rows.cpu())


def test_generation_with_a_drop_inside(pair):
    _, model, inputs = pair
    with prune(model, FSR(keep=4, relevance="none") | FastV(layer=1, keep=2)) as pruned:
        out = model.generate(**moved(inputs), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
    assert pruned.last.in_llm.drops


def test_the_report_names_what_selected(pair):
    _, model, inputs = pair
    report = prepare(model, FSR(keep=3, relevance="none"), moved(inputs)).report
    assert report.kernels == backend_name(torch.device("cuda")) == ("triton" if triton_there() else "plain")
    assert triton_there() or any("Triton" in note for note in report.notes)
