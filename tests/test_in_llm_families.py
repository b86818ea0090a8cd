"""Pruning inside the language model in every family: prefill against the naive run, steps with cache against none."""

from __future__ import annotations

import pytest
import torch

import families
from fsr import FSR, UnsupportedModelError, UsageError, prune
from fsr.adapters import find
from fsr.methods import Dart, FastV, Late, PyramidDrop, SparseVLM
from naive import Naive

DEEPSTACK = ("qwen3-vl", "qwen3-vl-moe", "qwen3-omni")
HYBRID = ("qwen3.5", "qwen3.5-moe")  # three of four layers are recurrent
SLIDING = ("gemma3",)
SHARED = ("gemma4", "gemma3n")  # the last layers read keys and values of earlier ones
# Decoders that the others have too, in another frame: one method shows that the columns are right.
OTHER = ("llama4",)  # its decoder stands in a frame of its own
ONE_METHOD = ("internvl3.5", "glm4v", "glm4v-moe", "glm46v", "mistral3", "pixtral", "qwen2.5-omni")
WHOLE = [n for n in families.FAMILIES if n not in (*DEEPSTACK, *HYBRID, *SLIDING, *SHARED, *OTHER)]
METHODS = {
    "fastv": lambda layer: FastV(layer=layer, keep=3),
    "dart": lambda layer: Dart(layer=layer, keep=3),
    "pyramiddrop": lambda layer: PyramidDrop(at=(layer,), keep=3),
    "sparsevlm": lambda layer: SparseVLM(at=(layer,), keep=3),
}


def pictures_of(model, ids, report):
    """(row, columns) of every picture or clip in prompt order."""
    marks = torch.tensor(sorted(find(model).placeholder_ids().values()))
    out = []
    for row in range(ids.shape[0]):
        places = torch.isin(ids[row], marks).nonzero().squeeze(-1)
        for selection, own in zip(report.selections, report.rows):
            if own == row:
                out.append((row, places[: selection.kept]))
                places = places[selection.kept :]
    return out


def check(name, method, layer):
    model, eager = families.model_of(name), families.FAMILIES[name].build("eager")
    eager.load_state_dict(model.state_dict())
    inputs = families.prompts(name, families.mixed(name))
    options = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with prune(model, method) as pruned, torch.no_grad():
        runs = [model.generate(**inputs, **options, use_cache=use) for use in (True, False)]
        logits = model(**inputs).logits[:, -1]
        report = pruned.last
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for with_cache, without in zip(runs[0].logits, runs[1].logits):
        torch.testing.assert_close(with_cache, without, atol=2e-5, rtol=1e-5)
    ids = inputs.pop("input_ids")
    pictures = pictures_of(model, ids, report)
    naive = Naive(eager, [(layer, method, 0)], prefix=name == "paligemma")
    slow = naive.run(ids, inputs.pop("attention_mask"), pictures, **inputs)
    torch.testing.assert_close(logits, slow[:, -1], atol=2e-5, rtol=1e-5)
    (drop,) = report.in_llm.drops
    assert all(torch.equal(w[rows], stay) for (_, w), rows, stay in zip(pictures, drop.rows, naive.chosen[layer]))
    assert all(len(rows) == 3 for rows in drop.rows)


@pytest.mark.parametrize(
    ("name", "method"), [(n, m) for n in WHOLE for m in METHODS if m == "fastv" or n not in ONE_METHOD]
)
def test_family(name, method):
    check(name, METHODS[method](1), 1)


@pytest.mark.parametrize("name", DEEPSTACK)
def test_deepstack_is_behind_the_layers_that_use_it(name):
    with pytest.raises(UnsupportedModelError, match="adds visual features by column"):
        prune(families.model_of(name), FastV(layer=1, keep=3))
    check(name, FastV(layer=2, keep=3), 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((n, r"3 of 4 layers .* are recurrent") for n in HYBRID),
        *((n, "keys and values of earlier") for n in SHARED),
        ("llama4", "no plain list of"),
    ],
)
def test_layers_that_remember_are_refused(name, words):
    model = families.model_of(name)
    before = set(model.__dict__)
    for method in (FastV(layer=3, keep=3), PyramidDrop(at=(3,), keep=3), FSR(keep=8) | Late({3: 3})):
        with pytest.raises(UnsupportedModelError, match=words):
            prune(model, method)
    assert set(model.__dict__) == before


def test_states_beside_attention_are_refused():
    """Layers that run a recurrent part beside their attention all have a `self_attn`: their cache tells them apart."""
    model = families.FAMILIES["llava"].build("sdpa")
    text = model.get_decoder().config
    text.layer_types = ["hybrid"] * text.num_hidden_layers
    with pytest.raises(UnsupportedModelError, match="keep more of a prompt than keys and values"):
        prune(model, FastV(layer=1, keep=3))


@pytest.mark.parametrize("name", SLIDING)
def test_sliding_windows_are_refused(name):
    inputs = families.prompts(name, families.mixed(name))
    model = families.model_of(name)
    with prune(model, FastV(layer=1, keep=3)), pytest.raises(UsageError, match="sliding window"):
        model.generate(**inputs, max_new_tokens=2)
