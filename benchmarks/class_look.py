"""What this library does with one class of Transformers, on a tiny random twin of it (`class_map` looks at all)."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

import torch  # noqa: E402
import transformers  # noqa: E402

import class_twins  # noqa: E402
import families  # noqa: E402
from class_rows import Row  # noqa: E402
from fsr import FSR, FSRError, UnsupportedModelError, prepare, prune  # noqa: E402
from fsr.adapters import find  # noqa: E402
from fsr.methods import get  # noqa: E402

KEEP = 3
TOLERANCE = 2e-5
MODES: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 2}, "no cache": {"use_cache": False}}
# Classes whose twins the tests have, with hand-made prompts: model type -> family of tests/families.py.
TESTED = {
    "gemma3": "gemma3", "gemma3n": "gemma3n", "gemma4": "gemma4",
    "glm46v": "glm46v", "glm4v": "glm4v", "glm4v_moe": "glm4v-moe",
    "glmga": "glm46v", "idefics3": "idefics3", "internvl": "internvl", "llava": "llava", "llava_next": "llava-next",
    "llava_next_video": "llava-next-video", "llava_onevision": "llava-onevision", "mistral3": "mistral3",
    "paligemma": "paligemma", "qwen2_5_omni_thinker": "qwen2.5-omni", "qwen2_5_vl": "qwen2.5-vl",
    "qwen2_vl": "qwen2-vl", "qwen3_5": "qwen3.5", "qwen3_5_moe": "qwen3.5-moe", "qwen3_vl": "qwen3-vl",
    "qwen3_omni_moe_thinker": "qwen3-omni", "qwen3_vl_moe": "qwen3-vl-moe", "shieldgemma2": "gemma3",
    "smolvlm": "smolvlm",
}  # fmt: skip


def look(model_type: str) -> Row:
    """One class, on a twin that is made for it and dropped."""
    cls = getattr(transformers, class_twins.NAMES[model_type])
    if not class_twins.takes_features(cls):
        return Row(model_type, "no features", "takes no features from outside")
    try:
        if model_type in TESTED:
            model = families.model_of(TESTED[model_type])
            inputs = families.prompts(TESTED[model_type], [(1, 0)])
        else:
            model = class_twins.twin(model_type)
            inputs = None
    except Exception as error:
        return Row(model_type, "no twin", _line(error))
    before, training = set(model.__dict__), model.training
    try:
        adapter = find(model)
    except UnsupportedModelError as error:
        return Row(model_type, "refused", _line(error))
    try:
        if inputs is None:
            inputs = class_twins.inputs_for(model, adapter.base)
        expected = {"greedy": _run(model, inputs, {})}
    except Exception as error:
        return Row(model_type, "no twin", f"no prompt for the twin: {_line(error)}")
    for mode, options in MODES.items():
        try:
            run = _run(model, inputs, options)
            if (run[1][0] - expected["greedy"][1][0][:1]).abs().max() < 1e-3:  # else Transformers mixes up pictures
                expected[mode] = run
        except Exception:
            continue
    try:
        signals = _signals(model, inputs)
        whole = FSR(keep=9999, relevance="none") if "saliency" in signals else get("divprune", keep=9999)
        for mode in expected:
            with prune(model, whole):
                got = _run(model, inputs, MODES[mode])
            if not all(torch.equal(a, b) for a, b in zip(got, expected[mode])):
                return Row(model_type, "wrong", f"{adapter.name}: all tokens kept, {mode} differs")
        few = FSR(keep=KEEP, relevance="none") if "saliency" in signals else get("divprune", keep=KEEP)
        with prune(model, few) as pruned:
            runs = [_run(model, inputs, MODES[m])[1][:, 0] for m in ("greedy", "no cache") if m in expected]
        unpruned = [expected[m][1][:, 0] for m in ("greedy", "no cache") if m in expected]
        same = bool(torch.allclose(unpruned[0], unpruned[-1], atol=1e-4))  # not so for some recurrent layers
        if same and not torch.allclose(runs[0], runs[-1], atol=1e-4):
            return Row(model_type, "wrong", f"{adapter.name}: a step with a KV cache differs from one without")
        kept = [s.kept for s in pruned.last.selections]
        if max(s.total for s in pruned.last.selections) <= KEEP:
            return Row(model_type, "no twin", "the pictures of the twin are too small to be pruned")
        if model_type not in TESTED and (gap := dropped_columns(model, adapter, inputs, few)) > TOLERANCE:
            return Row(model_type, "wrong", f"{adapter.name}: {gap:.1e} from dropped columns")
        if kept != [min(KEEP, s.total) for s in pruned.last.selections] or pruned.last.tokens_after != sum(kept):
            return Row(model_type, "wrong", f"{adapter.name}: kept {kept}")
        clips = "" if model_type in TESTED else look_at_clips(model, adapter, inputs, whole, few)
    except UnsupportedModelError as error:
        left = set(model.__dict__) == before
        return Row(model_type, "refused" if left else "wrong", _line(error))
    except Exception as error:
        return Row(model_type, "wrong", f"{adapter.name}: {type(error).__name__}: {_line(error)}")
    if set(model.__dict__) != before or model.training != training:
        return Row(model_type, "wrong", f"{adapter.name}: the model is not as it was")
    return Row(model_type, "works", f"{adapter.name}: {', '.join(signals) or 'features alone'}{clips}")


def look_at_clips(model: Any, adapter: Any, inputs: dict[str, Any], whole: Any, few: Any) -> str:
    """ "; clips" where a clip works, nothing where the class itself fails on it or its adapter refuses.

    Raises:
        ValueError: a clip is pruned wrongly.
    """
    try:
        clip = class_twins.clip_for(model, adapter, inputs)
        expected = None if clip is None else _run(model, clip, {})
    except Exception:
        return ""
    if clip is None or expected is None:
        return ""
    try:
        with prune(model, whole):
            same = all(torch.equal(a, b) for a, b in zip(_run(model, clip, {}), expected))
        with prune(model, few) as pruned:
            _run(model, clip, {})
    except UnsupportedModelError:
        return ""
    if not same or [s.kept for s in pruned.last.selections] != [KEEP]:
        raise ValueError("a clip is pruned wrongly")
    return "; clips"


@torch.no_grad()
def dropped_columns(model: Any, adapter: Any, inputs: dict[str, Any], method: Any) -> float:
    """How far logits of a pruned prompt are from those of the language model on hand-made columns: all features merged
    at full length, the columns that are not kept left out. Largest difference as a share of the largest logit.

    Where that differs (features enter in more places, or are added to the embeddings) those columns are hidden by a
    mask instead, at full length.
    """
    original = prepare(model, method, inputs, call="forward", positions="original")
    got = model(**original).logits[0, -1]
    columns = original.report.columns[0]
    encoded = adapter.encode(inputs, method.signals())[0]
    gaps = []
    if getattr(encoded.output, "deepstack_features", None) is None:
        ids = inputs["input_ids"]
        embeds = model.get_input_embeddings()(ids)
        where = ids == adapter.placeholder_ids()["image"]
        embeds[where] = torch.cat([unit.features for unit in encoded.units]).to(embeds)
        known = set(inspect.signature(type(model).forward).parameters)
        given = {
            n: v[:, columns]
            for n, v in inputs.items()
            if n in known and n != "input_ids" and isinstance(v, torch.Tensor) and v.shape == ids.shape
        }
        given["position_ids"] = original["position_ids"]
        expected = model(inputs_embeds=embeds[:, columns], **given).logits[0, -1]
        gaps.append(float((got - expected).abs().max() / expected.abs().max()))
    if not gaps or gaps[0] > TOLERANCE:
        whole = prepare(model, get("divprune", keep=9999), inputs, call="forward", positions="original")
        hidden = torch.zeros_like(inputs["attention_mask"])
        hidden[:, columns] = 1
        expected = model(**{**whole, "attention_mask": hidden}).logits[0, -1]
        gaps.append(float((got - expected).abs().max() / expected.abs().max()))
    return min(gaps)


def _run(model: Any, inputs: dict[str, Any], options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    out = model.generate(
        **inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
    )
    return out.sequences, torch.stack(out.logits)


def _signals(model: Any, inputs: dict[str, Any]) -> list[str]:
    """Those of the vision side that some method can read here."""
    found = []
    for name, method in {"saliency": FSR(keep=KEEP, relevance="none"), "keys": get("visionzip", keep=KEEP)}.items():
        try:
            prepare(model, method, inputs)
            found.append(name)
        except UnsupportedModelError:
            if name == "keys" and not found:
                prepare(model, get("divprune", keep=KEEP), inputs)
        except FSRError:
            continue
    return found


def _line(error: BaseException) -> str:
    """In one line, cut between words."""
    return textwrap.shorten(str(error), 260, placeholder=" …").replace("|", "/")
