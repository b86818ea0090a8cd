"""Calls that go past the pruner: pictures that were encoded before, embeddings in place of ids, the inner model called
by itself, models that wrap a vision-language model. Each is right or refused; none passes unpruned in silence."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import families
import tiny
from fsr import FSR, FeatureError, UnsupportedModelError, UsageError, prepare, prune
from fsr.adapters import find
from fsr.pipeline.encode import encode
from test_calls_rows import NAMES, OLD, fast

METHOD = FSR(keep=3, relevance="none")
GREEDY = dict(max_new_tokens=2, do_sample=False)


def encoded(model, inputs):
    """The features of the picture, as a user computes them beforehand."""
    names = set(inputs) - {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}
    return find(model).base.get_image_features(**{n: inputs[n] for n in names}, return_dict=True)


def text_of(inputs):
    return {n: inputs[n] for n in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids") if n in inputs}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_and_embeddings_given_beforehand(name):
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    text = text_of(inputs)
    features = {"image": encoded(model, inputs)}
    rest = {n: v for n, v in text.items() if n != "input_ids"}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    methods = [METHOD] + ([fast(name)] if fast(name) else [])
    for method in methods:
        with prune(model, method) as pruned:
            for call in (lambda **k: model.generate(**k, **GREEDY), lambda **k: model(**k)):
                with pytest.raises(UsageError, match=r"pixels|encode"):
                    call(**text, mm_encoder_outputs=features)
                with pytest.raises(UsageError, match="inputs_embeds"):
                    call(**rest, inputs_embeds=embeds)
                with pytest.raises((UsageError, FeatureError), match="placeholders"):
                    call(**text)  # the pixels were forgotten
            assert pruned.last is None
    for wrong in ({**text, "mm_encoder_outputs": features}, {**rest, "inputs_embeds": embeds}, text):
        with pytest.raises((UsageError, FeatureError)):
            prepare(model, METHOD, wrong)


@pytest.mark.parametrize("name", [n for n in NAMES if families.FAMILIES[n].clip and not (OLD and n == "gemma4")])
@torch.no_grad()
def test_pixels_of_one_kind_and_features_of_another(name):
    """They were thrown away, and the clip's placeholders stayed raw."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 1)])
    names = ("pixel_values_videos", "video_grid_thw", "num_frames_per_video", "video_position_ids")
    clip = {n: inputs.pop(n) for n in names if n in inputs}
    features = model.model.get_video_features(**clip, return_dict=True)
    with prune(model, FSR(keep=1.0, relevance="none")):
        with pytest.raises(UsageError, match="pixels"):
            model.generate(**inputs, mm_encoder_outputs={"video": features}, **GREEDY)


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "internvl"])
@torch.no_grad()
def test_what_prepare_made_passes(name):
    """Prepared inputs are pruned already, in the block and outside, with every container copied in between."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    prepared = prepare(model, METHOD, inputs)
    expected = model.generate(**prepared, **GREEDY)
    with prune(model, METHOD):
        assert torch.equal(model.generate(**prepared, **GREEDY), expected)
        assert torch.equal(model.generate(**copy.deepcopy(prepared.inputs), **GREEDY), expected)
        assert model.generate(**prepared.inputs, **GREEDY, num_beams=2).shape == expected.shape
        again = prepare(model, METHOD, inputs, encoded=encode(model, inputs, METHOD))
        assert torch.equal(model.generate(**again, **GREEDY), expected)
        model(**prepare(model, METHOD, inputs, call="forward"))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "llama4"])  # which has no inner model
@torch.no_grad()
def test_the_inner_model_is_no_way_around(name):
    """`model.model(...)` ran whole pictures."""
    model, inputs = families.model_of(name), families.prompts(name, [(1, 0)])
    with prune(model, METHOD) as pruned:
        with pytest.raises(UsageError, match=r"prune\("):
            model.model(**inputs)
        with pytest.raises(UsageError, match=r"prune\("):
            model.model(**text_of(inputs), mm_encoder_outputs={"image": encoded(model, inputs)})
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(UsageError, match="inputs_embeds"):
            model.model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
        try:  # past the `generate` on the instance: features of whole pictures are refused, pixels pruned on arrival
            type(model).generate(model, **inputs, **GREEDY)
            assert OLD and pruned.last.tokens_after == 3
        except UsageError as refusal:
            assert "mm_encoder_outputs" in str(refusal) and pruned.last is None
        words = families.prompts(name, [(0, 0)])
        model.model(**words)
        model(**inputs)
        assert pruned.last.tokens_after == 3
    base = model.model
    with prune(base, METHOD) as pruned:  # pruned itself, its states are short and the report says how
        states = base(**inputs).last_hidden_state
        report = pruned.last
        assert states.shape[:2] == report.input_ids.shape == report.attention_mask.shape
    assert "generate" not in base.__dict__


class Retrieval(nn.Module):
    """As ColQwen2 does: encodes pictures itself and runs the inner model on embeddings."""

    def __init__(self, vlm):
        super().__init__()
        self.vlm, self.config = vlm, SimpleNamespace(model_type="retrieval")

    def forward(self, input_ids, attention_mask, **vision):
        embeds = self.vlm.get_input_embeddings()(input_ids).clone()
        features = self.vlm.model.get_image_features(**vision, return_dict=True).pooler_output
        embeds[input_ids == families.IMAGE] = torch.cat([f.flatten(0, -2) for f in features])
        return self.vlm.model(inputs_embeds=embeds, attention_mask=attention_mask).last_hidden_state


@torch.no_grad()
def test_models_around_a_vision_language_model():
    col = Retrieval(families.model_of("llava"))
    inputs = families.prompts("llava", [(1, 0)])
    for inner in (col.vlm, col.vlm.model):
        with prune(inner, METHOD), pytest.raises(UsageError, match="inputs_embeds"):
            col(**inputs)
    with pytest.raises(UnsupportedModelError, match="inside it"):
        prune(col, METHOD)


def test_real_retrieval_models():
    from transformers import ColPaliConfig, ColPaliForRetrieval

    base = families.model_of("paligemma")
    col = ColPaliForRetrieval(ColPaliConfig(vlm_config=copy.deepcopy(base.config), embedding_dim=8)).eval()
    inputs = families.prompts("paligemma", [(1, 0)])
    with pytest.raises(UnsupportedModelError, match="inside it"):
        prune(col, METHOD)
    # The inner model is pruned, and the long mask that the outer one pools with fits nothing: an error of sizes.
    with torch.no_grad(), prune(col.vlm, METHOD) as pruned, pytest.raises(RuntimeError, match="size of tensor"):
        col(**{n: inputs[n] for n in ("input_ids", "attention_mask", "pixel_values")})
    assert pruned.last.tokens_after == 3


@torch.no_grad()
def test_classifiers():
    """One that hands everything on pools by the shortened ids."""
    from transformers import Gemma3ForSequenceClassification

    config = copy.deepcopy(families.model_of("gemma3").config)
    config.num_labels = 3
    model, rows = Gemma3ForSequenceClassification(config).eval(), [(2, 0), (1, 0)]
    with prune(model, METHOD) as pruned:
        together = model(**families.prompts("gemma3", rows)).logits
        assert pruned.last.tokens_after == 9
        for i in range(2):
            alone = model(**families.row_alone("gemma3", rows, i)).logits
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)
    with prune(model.model, METHOD), pytest.raises((IndexError, UsageError)):
        model(**families.prompts("gemma3", [(1, 0)]))


@torch.no_grad()
def test_text_passes_as_it_is(llava, processor):
    words = tiny.prompts(processor, [tiny.chat(("how many are there ?", 0))], [])
    expected, logits = llava.generate(**words, **GREEDY), llava(**words).logits
    with prune(llava, METHOD):
        assert torch.equal(llava.generate(**words, **GREEDY), expected)
        assert torch.equal(llava.generate(**words, **GREEDY, use_cache=False), expected)
        assert torch.equal(llava(**words).logits, logits)
        out = llava(**words, use_cache=True)
        step = llava.get_input_embeddings()(expected[:, -1:])
        llava(inputs_embeds=step, past_key_values=out.past_key_values)  # a step of one's own from a filled cache
