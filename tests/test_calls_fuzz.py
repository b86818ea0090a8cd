"""Situations drawn at random: families x layouts of padding x given or missing masks and positions x call x cache x
wrappers x methods. Every row must give what it gives alone.

`FSR_FUZZ_MINUTES=60 python -m pytest -s tests/test_calls_fuzz.py` goes on for an hour with new situations, and prints
how many there were.
"""

from __future__ import annotations

import copy
import functools
import os
import time
import types
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import families
import tiny
from fsr import FSR, prepare, prune
from fsr.methods import FastV, PyramidDrop, SparseVLM
from test_calls_rows import PACKABLE, close, extended, fast, packed

MINUTES = float(os.environ.get("FSR_FUZZ_MINUTES", "0"))
CASES: Counter[str] = Counter()
BEFORE = {
    "fsr": FSR(keep=3, relevance="none"),
    "share": FSR(keep=0.4, relevance="none"),
    "ragged": tiny.Salient(keep=0.3),
    "whole": FSR(keep=1.0, relevance="none"),
}
INSIDE = {
    "fastv": FastV(layer=1, keep=2),
    "sparsevlm": SparseVLM(at=(1,), keep=3),
    "pyramiddrop": PyramidDrop(at=(1,), keep=0.5),
    "chain": BEFORE["fsr"] | FastV(layer=1, keep=2),
}


@dataclass(frozen=True)
class Situation:
    """One draw. rows: (pictures, clips) of each; completions: tokens behind each prompt; slack: columns of padding
    behind all rows."""

    family: str
    method: str
    rows: tuple[tuple[int, int], ...]
    completions: tuple[int, ...]
    slack: int
    call: str  # forward, generate, or prepare for one of them
    cached: bool
    mask: bool
    positions: bool
    policy: str
    wrapper: str
    pictures: int


@st.composite
def situations(draw: Any) -> Situation:
    family = draw(st.sampled_from(sorted(families.FAMILIES)))
    methods = [*BEFORE] + ([*INSIDE] if fast(family) else [])
    method = draw(st.sampled_from(methods))
    clips = 1 if families.FAMILIES[family].clip and families.FAMILIES[family].mixes else 0
    row = st.tuples(st.integers(0, 2), st.integers(0, clips))
    rows = draw(st.lists(row, min_size=1, max_size=3).filter(lambda r: any(n + v for n, v in r)))
    call = draw(st.sampled_from(["forward", "generate", "prepare-forward", "prepare-generate"]))
    if method in INSIDE:
        call = call.removeprefix("prepare-")
    spoken = st.integers(1, 5) if call.endswith("forward") else st.just(0)
    completions = tuple(draw(spoken) for _ in rows)
    slack = draw(st.integers(0, 2)) if call.endswith("forward") else 0
    padded = len({len(t) for t in texts(family, rows)}) > 1 or len(set(completions)) > 1 or slack > 0
    mask = draw(st.booleans()) if not padded or call.endswith("generate") else True
    positions = not family.startswith("qwen") and (mask or not padded) and draw(st.booleans())
    policy = draw(st.sampled_from(["auto", "repack", "original"])) if not positions else "auto"
    wrapper = draw(st.sampled_from(["none", "none", "generate", "forward", "parallel", "lora"]))
    return Situation(
        family, method, tuple(rows), completions, slack, call, draw(st.booleans()), mask, positions, policy, wrapper,
        draw(st.integers(0, 20)),
    )  # fmt: skip


def texts(family: str, rows: Any) -> list[Any]:
    ids = families.prompts(family, list(rows))
    return [row[m.bool()] for row, m in zip(ids["input_ids"], ids["attention_mask"])]


@cache
def model_of(family: str, tuned: bool) -> Any:
    if not tuned:
        return families.model_of(family)
    import peft

    torch.manual_seed(0)
    model = copy.deepcopy(families.model_of(family))
    target = r".*(language_model|text_model).*q_proj"
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=target, r=2, init_lora_weights=False))


@contextmanager
def wrapped(model: Any, how: str) -> Any:
    """The model as a user has it, and what to give to `prune`."""
    if how == "parallel":
        yield model, nn.DataParallel(model)
    elif how == "generate":
        old = model.generate
        model.generate = types.MethodType(lambda self, *a, **k: old(*a, **k), model)
        try:
            yield model, model
        finally:
            del model.generate
    elif how == "forward":
        own = type(model).forward
        # With its signature: `generate` of Transformers checks arguments by it.
        model.forward = types.MethodType(functools.wraps(own)(lambda self, *a, **k: own(self, *a, **k)), model)
        try:
            yield model, model
        finally:
            del model.forward
    else:
        yield model, model


def batch_of(s: Situation, only: int | None = None) -> dict[str, Any]:
    """All rows, padded; or one of them alone, unpadded."""
    rows, before = list(s.rows), 0 if only is None else only
    if only is None:
        inputs = families.prompts(s.family, rows, seed=s.pictures)
    else:
        n, v = (sum(r[i] for r in rows[:before]) for i in (0, 1))
        inputs = families.prompts(s.family, [rows[only]], s.pictures + n, 50 + v, only)
    which = range(len(rows)) if only is None else [only]
    width = (max(s.completions) + s.slack) if only is None else s.completions[only]
    ids, mask = torch.zeros(len(which), width, dtype=torch.long), torch.zeros(len(which), width, dtype=torch.long)
    for i, row in enumerate(which):
        n = s.completions[row]
        ids[i, :n], mask[i, :n] = torch.arange(20, 20 + n) + row, 1
    inputs = extended(inputs, ids, mask)
    if s.positions:
        m = inputs["attention_mask"]
        inputs["position_ids"] = (m.cumsum(-1) - 1).clamp_min(0) + int(s.family == "paligemma" and "forward" in s.call)
    if not s.mask:
        del inputs["attention_mask"]
    return inputs


def run(model: Any, s: Situation, method: Any, inputs: dict[str, Any]) -> Any:
    """Logits [B, T, V] of a forward, or scores of four steps [B, 4, V]; and the model's report."""
    options: dict[str, Any] = dict(use_cache=s.cached)
    if s.call.endswith("generate"):
        options |= dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with wrapped(model, s.wrapper) as (mine, given):
        if s.call.startswith("prepare"):
            call = s.call.removeprefix("prepare-")
            made = prepare(given, method, inputs, positions=s.policy, call=call, use_cache=s.cached)
            out = mine.generate(**made, **options) if call == "generate" else mine(**made, **options)
        else:
            with prune(given, method, positions=s.policy):
                if s.call == "generate":
                    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
                    out = mine.generate(inputs["input_ids"], **rest, **options)
                else:
                    out = mine(**inputs, **options)
    return torch.stack(list(out.logits), 1) if s.call.endswith("generate") else out.logits


@torch.no_grad()
def check(s: Situation) -> None:
    CASES[s.family] += 1
    model = model_of(s.family, s.wrapper == "lora")
    method = BEFORE.get(s.method) or INSIDE[s.method]
    if s.family in families.UNSEEN:
        method = families.method_for(s.family, method.keep)
    together = run(model, s, method, batch_of(s))
    for row in range(len(s.rows)):
        if not sum(s.rows[row]) and s.call.startswith("prepare"):
            continue  # nothing to prepare
        alone = run(model, s, method, batch_of(s, row))
        if s.call.endswith("generate"):
            mine, other = together[row : row + 1], alone
        else:
            n = s.completions[row]
            end = together.shape[1] - s.slack - (max(s.completions) - n)
            mine, other = together[row : row + 1, end - n : end], alone[:, -n:]
        assert close(mine, other), (row, float((mine - other).abs().max()))


@torch.no_grad()
def check_packed(family: str, keep: int, wrapper: str) -> None:
    CASES[family] += 1
    model = model_of(family, wrapper == "lora")
    both, parts = packed(family)
    method = families.method_for(family, keep)
    with wrapped(model, wrapper) as (mine, given), prune(given, method):
        together = mine(**both, use_cache=False).logits
        alone = [mine(**p, use_cache=False).logits for p in parts]
    n = alone[0].shape[1]
    assert close(together[:, :n], alone[0]) and close(together[:, n:], alone[1])


def search(examples: int, number: int | None) -> None:
    quiet = list(HealthCheck)
    rules = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=quiet,
                     derandomize=number is None)  # fmt: skip
    decorated = rules(given(situations())(check))
    (decorated if number is None else seed(number)(decorated))()


def test_situations(capsys):
    began = time.monotonic()
    if not MINUTES:
        search(50, None)
    number = 0
    while time.monotonic() < began + 60 * MINUTES:
        number += 1
        search(100, number)
        for family in PACKABLE:
            check_packed(family, 1 + number % 4, ("none", "forward", "parallel", "lora")[number % 4])
        with capsys.disabled():
            print(f"{sum(CASES.values())} situations, nothing found: {dict(CASES)}", flush=True)
