"""Situations of a pruned call, drawn at random (test_calls_fuzz.py): how a batch is laid out, what comes with it, how
it is called, and what stands around the model."""

from __future__ import annotations

import copy
import functools
import types
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache

import families
import tiny
from fsr import FSR, FSRError, prepare, prune
from fsr.methods import Dart, FastV, PyramidDrop, SparseVLM, VisionZip
from test_calls_rows import OLD, extended, families_axes, fast, three_dimensional

PLAIN = dict(relevance="none")
BEFORE = {
    "fsr": FSR(keep=3, **PLAIN),
    "share": FSR(keep=0.4, **PLAIN),
    "visionzip": VisionZip(keep=4),
    "ragged": tiny.Salient(keep=0.3),
    "asked": FSR(keep=3),  # relevance from the first layer, with a question of its own for each row
    "whole": FSR(keep=1.0, **PLAIN),
}
INSIDE = {
    "fastv": FastV(layer=1, keep=2),
    "sparsevlm": SparseVLM(at=(1,), keep=3),
    "pyramiddrop": PyramidDrop(at=(1,), keep=0.5),
    "dart": Dart(layer=1, keep=8),
    "chain": BEFORE["fsr"] | FastV(layer=1, keep=2),
}
QUESTIONS = ("what is the dog ?", "where is the big red car ?", "how many are there ?")
MASKS = {"long": torch.long, "bool": torch.bool, "float": torch.float32, "int": torch.int32}
# Around the model, any two at once: others' `generate` and `forward`, on an instance or put on inside the block;
# DataParallel; LoRA on the language model or the vision tower; weights that Accelerate loads layer by layer.
WRAPPERS = ("generate", "forward", "inside", "parallel", "lora", "lora-tower", "offload")


@dataclass(frozen=True)
class Situation:
    """One draw.

    rows: (pictures, clips) of each; completions: tokens behind each prompt; lead, slack: columns of padding in front of
    and behind all rows; side: where prompts of different length are padded (on the right, completions follow a gap).
    mask: a type, or "none". positions: "none", "text" [B, L], or "axes", "text+axes" of multi-dimensional RoPE.
    """

    family: str
    method: str
    rows: tuple[tuple[int, int], ...]
    completions: tuple[int, ...]
    lead: int
    slack: int
    side: str
    call: str  # forward, loop, generate, beams, or prepare-... for some of them
    cache: str  # default, none, given, static
    mask: str
    positions: str
    policy: str
    wrappers: tuple[str, ...]
    attention: str
    mode: str  # no_grad, inference_mode, checkpointing
    pictures: int


@st.composite
def situations(draw: Any) -> Situation:
    pick = lambda *options: draw(st.sampled_from(options))
    family = pick(*sorted(families.FAMILIES))
    kind, axes = families.FAMILIES[family], three_dimensional(family)
    method = pick(*(m for m in (*BEFORE, *INSIDE) if prunable(family, m)))
    row = st.tuples(st.integers(0, 3), st.integers(0, 1 if kind.clip and kind.mixes else 0))
    rows = tuple(draw(st.lists(row, min_size=1, max_size=3).filter(lambda r: any(n + v for n, v in r))))
    beams = () if family == "llama4" else ("beams",)  # refused: Transformers does not repeat its pictures
    call = pick("forward", "forward", "loop", "generate", *beams, "prepare-forward", "prepare-generate")
    if method in INSIDE:  # prepare() knows nothing of them
        call = call.removeprefix("prepare-")
    if call == "loop" and axes:
        call = "forward"  # stock models with axes take no mask in a loop
    direct = call.endswith("forward")
    completions = tuple(draw(st.integers(0, 5) if direct else st.just(0)) for _ in rows)
    lead, slack = draw(st.integers(0, 2)), draw(st.integers(0, 2)) if direct else 0
    lengths = {len(t) for t in texts(family, rows)}
    side = pick("left", "left", "right") if direct else "left"
    padded = len(lengths) > 1 or len(set(completions)) > 1 or slack + lead > 0
    gap = side == "right" and len(lengths) > 1 and any(completions)
    mask = pick(*MASKS, "none") if not padded or call.endswith("generate") or call == "beams" else pick(*MASKS)
    positions = "none"
    if axes:
        # Without clips; Omni computes its axes in its own way.
        plain = "mm_token_type_ids" in families.prompts(family, list(rows)) and not any(v for _, v in rows)
        if direct and plain and mask != "none" and kind.mixes:
            positions = pick("none", "none", "axes", "text+axes")
    elif call != "loop" and (mask != "none" or not padded):
        positions = "text" if gap else pick("none", "text")
    policy = pick("auto", "auto", "repack", "original") if positions == "none" and not gap else "auto"
    if call == "loop":
        policy = "auto"
    caches = ["default", "none", "given", "static"]
    if call == "loop":
        caches = ["default"]
    elif method in INSIDE or not call.endswith("generate") or not static(family):
        caches = caches[:2] if call == "beams" else caches[:3]
    cache_kind = pick(*caches)
    modes = ["no_grad", "inference_mode", *(["checkpointing"] if call == "forward" else [])]
    mode = pick(*modes)
    wrappers = draw(st.lists(st.sampled_from(WRAPPERS), max_size=2, unique=True).map(sorted))
    if "offload" in wrappers and (not offloads(family) or mode == "checkpointing" or OLD):
        wrappers.remove("offload")
    if "lora" in wrappers and "lora-tower" in wrappers:
        wrappers.remove("lora-tower")
    attention = pick("sdpa", "sdpa", "eager")
    return Situation(family, method, rows, completions, lead, slack, side, call, cache_kind, mask, positions, policy,
                     tuple(wrappers), attention, mode, draw(st.integers(0, 20)))  # fmt: skip


def texts(family: str, rows: Any) -> list[Any]:
    ids = families.prompts(family, list(rows))
    return [row[m.bool()] for row, m in zip(ids["input_ids"], ids["attention_mask"])]


@cache
def static(family: str) -> bool:
    """Whether the stock model runs with a static cache."""
    return works(family, cache_implementation="static", disable_compile=True)


@cache
def offloads(family: str) -> bool:
    """Whether the stock model runs with its weights offloaded."""
    return works(family, "offload")


def works(family: str, wrapper: str = "", **options: Any) -> bool:
    try:
        model = model_of(family, "sdpa", (wrapper,) if wrapper else ())
        model.generate(**families.prompts(family, [(1, 0)]), max_new_tokens=2, do_sample=False, **options)
    except Exception:
        return False
    return True


@cache
def model_of(family: str, attention: str, wrappers: tuple[str, ...]) -> Any:
    """The model of this family under those wrappers that stay on it."""
    model = families.model_of(family, attention)
    if not wrappers:
        return model
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    for how in wrappers:
        if how == "offload":
            import accelerate

            accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            import peft

            part = r"(language_model|text_model|thinker\.model|^model\.layers)" if how == "lora" else r"(vision|visual)"
            target = rf".*{part}.*(q_proj|qkv|out_proj|o_proj)"
            config = peft.LoraConfig(target_modules=target, r=2, init_lora_weights=False)
            try:
                model = peft.get_peft_model(model, config)
            except ValueError:  # this family names its layers in another way
                return model_of(family, attention, tuple(w for w in wrappers if w != how))
    return model


@contextmanager
def wrapped(model: Any, how: tuple[str, ...]) -> Any:
    """What to give to `prune`. The calls of the model go through the wrappers."""
    with ExitStack() as stack:
        if "generate" in how:
            stack.enter_context(other_generate(model))
        if "forward" in how:
            own = type(model).forward
            # With its signature: `generate` of Transformers checks arguments by it.
            around = functools.wraps(own)(lambda self, *a, **k: own(self, *a, **k))
            model.forward = types.MethodType(around, model)
            stack.callback(delattr, model, "forward")
        yield nn.DataParallel(model) if "parallel" in how else model


@contextmanager
def other_generate(model: Any) -> Any:
    """Somebody's wrapper around `generate`, and off again."""
    had, old = model.__dict__.get("generate"), model.generate
    model.generate = types.MethodType(lambda self, *a, **k: old(*a, **k), model)
    try:
        yield
    finally:
        del model.generate
        if had is not None:
            model.generate = had


# -------------------------------------------------------------------------------------------------------------- a batch


def alone(s: Situation, row: int) -> dict[str, Any]:
    """One row by itself, unpadded."""
    n, v = (sum(r[i] for r in s.rows[:row]) for i in (0, 1))
    inputs = families.prompts(s.family, [s.rows[row]], s.pictures + n, 50 + v, row)
    words = torch.arange(20, 20 + s.completions[row])[None] + row
    return placed(s, extended(inputs, words, torch.ones_like(words)))


def together(s: Situation) -> dict[str, Any]:
    """All rows in the layout of the situation."""
    inputs = families.prompts(s.family, list(s.rows), seed=s.pictures, side=s.side)
    width = max(s.completions) + s.slack
    ids, mask = torch.zeros(len(s.rows), width, dtype=torch.long), torch.zeros(len(s.rows), width, dtype=torch.long)
    for row, n in enumerate(s.completions):
        ids[row, :n], mask[row, :n] = torch.arange(20, 20 + n) + row, 1
    inputs = extended(inputs, ids, mask)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            inputs[key] = nn.functional.pad(inputs[key], (s.lead, 0))
    inputs = placed(s, inputs)
    if s.mask == "none":
        del inputs["attention_mask"]
    else:
        inputs["attention_mask"] = inputs["attention_mask"].to(MASKS[s.mask])
    return inputs


def placed(s: Situation, inputs: dict[str, Any]) -> dict[str, Any]:
    """With the positions that the situation asks for."""
    if s.positions == "none":
        return inputs
    text = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    if s.positions == "text":
        inputs["position_ids"] = text + int(s.family == "paligemma" and "forward" in s.call)
        return inputs
    axes = families_axes(families.model_of(s.family), inputs)
    inputs["position_ids"] = torch.cat([text[None], axes]) if s.positions == "text+axes" else axes
    return inputs


# --------------------------------------------------------------------------------------------------------------- a call


def run(model: Any, s: Situation, inputs: dict[str, Any], rows: list[int], wrappers: tuple[str, ...] = ()) -> Any:
    """What the call says of each row: logits [B, T, V] of a forward, of four steps [B, 4, V], or the scores of beams.
    With the method "stock" nothing is pruned."""
    method, generated = method_of(s.family, s.method), s.call.endswith("generate") or s.call == "beams"
    options: dict[str, Any] = {"use_cache": s.cache != "none"} if s.mode != "checkpointing" else {}
    if s.cache == "given":
        options["past_key_values"] = DynamicCache(config=families.model_of(s.family).config.get_text_config())
    if generated:
        options |= dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
        options |= dict(cache_implementation="static", disable_compile=True) if s.cache == "static" else {}
        options |= dict(num_beams=2, output_scores=True) if s.call == "beams" else {}
    asked: dict[str, Any] = {}
    settings: dict[str, Any] = dict(positions=s.policy)
    if s.method == "asked":
        asked["question"] = [QUESTIONS[row] if sum(s.rows[row]) else None for row in rows]
        settings |= dict(relevance="first-layer", processor=words())
    with wrapped(model, wrappers) as given:
        if method is None:  # the stock model
            out = model.generate(**inputs, **options) if generated else model(**inputs, **options)
        elif s.call.startswith("prepare"):
            call = s.call.removeprefix("prepare-")
            settings |= dict(call=call, use_cache=s.cache != "none")
            made = prepare(given, method, inputs, **asked, **settings)
            out = model.generate(**made, **options) if generated else model(**made, **options)
        else:
            with ExitStack() as stack:
                pruned = stack.enter_context(prune(given, method, **settings))
                if "inside" in wrappers:
                    stack.enter_context(other_generate(pruned.model))
                if s.call == "loop":
                    return loop(model, pruned, inputs, asked)
                if generated and s.call == "generate":
                    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
                    out = model.generate(inputs["input_ids"], **rest, **asked, **options)
                else:
                    out = (model.generate if generated else model)(**inputs, **asked, **options)
    if s.call == "beams":
        return out.sequences_scores[:, None, None]
    return torch.stack(list(out.logits), 1) if generated else out.logits.detach()


def loop(model: Any, pruned: Any, inputs: dict[str, Any], asked: dict[str, Any]) -> Any:
    """Four steps by hand: the mask goes on from the shortened one of the report."""
    out = model(**inputs, **asked, use_cache=True)
    steps, mask = [out.logits[:, -1]], inputs["attention_mask"] if pruned.last is None else pruned.last.attention_mask
    more = {"token_type_ids": torch.zeros_like(mask[:, :1])} if "token_type_ids" in inputs else {}
    for _ in range(3):
        token = steps[-1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        out = model(input_ids=token, attention_mask=mask, past_key_values=out.past_key_values, **more)
        steps.append(out.logits[:, -1])
    return torch.stack(steps, 1)


@contextmanager
def mode_of(model: Any, mode: str) -> Any:
    if mode != "checkpointing":
        with torch.inference_mode() if mode == "inference_mode" else torch.no_grad():
            yield
        return
    model.train()
    model.gradient_checkpointing_enable()
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


@cache
def words() -> Any:
    return tiny.llava_processor()


def method_of(family: str, name: str) -> Any:
    """The method of this name; None for "stock"."""
    return BEFORE.get(name) or INSIDE.get(name)


@cache
def prunable(family: str, method: str) -> bool:
    """Whether this family takes this method at all."""
    if method in INSIDE and fast(family) is None:
        return False
    model, asked = families.model_of(family), method == "asked"
    settings = dict(relevance="first-layer", processor=words()) if asked else {}
    try:
        with torch.no_grad(), prune(model, method_of(family, method), **settings):
            model(**families.prompts(family, [(1, 0)]), **({"question": QUESTIONS[0]} if asked else {}))
    except FSRError:
        return False
    return True
