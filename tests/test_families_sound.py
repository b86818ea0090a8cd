"""Thinkers of Qwen-Omni with sound in the prompt: pictures and clips are pruned, sound is left alone."""

from __future__ import annotations

import pytest
import torch

import families
from family_models_recent import AUDIO
from fsr import FSR, prepare, prune

NAMES = ["qwen2.5-omni", "qwen3-omni"]
GREEDY = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)


def with_sound(name, inside_clip=False):
    """A picture, a clip and 64 frames of sound: after them, or the sound track of the clip (chunk by chunk)."""
    model = families.model_of(name)
    inputs = families.prompts(name, [(1, 1)])
    heard = dict(
        input_features=families.noise(9, 1, 16, 64), feature_attention_mask=torch.ones(1, 64, dtype=torch.long)
    )
    with torch.no_grad():
        n = len(model.get_audio_features(**heard, return_dict=True).last_hidden_state)
    ids = inputs["input_ids"][0].tolist()
    if inside_clip:
        # Each of the clip's two steps in time lasts two position ids; sound fills one position id per token.
        first = ids.index(families.VIDEO)
        count = ids.count(families.VIDEO)
        clip = [families.VIDEO] * (count // 2)
        track = [*clip, *[AUDIO] * min(n, 2), *clip, *[AUDIO] * max(0, n - 2)]
        if "3" in name[:5]:  # Qwen3-Omni sorts by time: the second step lies behind the first two sound tokens
            track = [*clip, *[AUDIO] * 3, *clip, *[AUDIO] * max(0, n - 3)]
        ids[first - 1 : first + count + 1] = [families.OPEN, AUDIO - 1, *track, AUDIO + 1, families.CLOSE]
    else:
        ids += [AUDIO - 1, *[AUDIO] * n, AUDIO + 1, 14, 15]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return model, {**inputs, **heard, **({"use_audio_in_video": True} if inside_clip else {})}, n


@pytest.mark.parametrize("inside_clip", [False, True], ids=["beside", "sound track"])
@pytest.mark.parametrize("name", NAMES)
def test_sound_is_left_alone(name, inside_clip, feature):
    model, inputs, n = with_sound(name, inside_clip)
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}):
        if inside_clip and options:
            continue
        expected = model.generate(**inputs, **GREEDY, **options)
        with prune(model, FSR(keep=9999, relevance="none")):
            got = model.generate(**inputs, **GREEDY, **options)
        assert torch.equal(got.sequences, expected.sequences)
        assert torch.equal(torch.stack(got.logits), torch.stack(expected.logits)), options
    prepared = prepare(model, FSR(keep=3, relevance="none"), inputs)
    ids = prepared["input_ids"][0]
    assert int((ids == AUDIO).sum()) == n > 4
    assert int((ids == families.IMAGE).sum()) == int((ids == families.VIDEO).sum()) == 3
    # What is kept stands where it stood: positions are those of the whole prompt.
    whole = prepare(model, FSR(keep=9999, relevance="none"), inputs)["position_ids"][1:, 0]
    text = whole[:, ~torch.isin(inputs["input_ids"][0], torch.tensor([families.IMAGE, families.VIDEO]))]
    kept = prepared["position_ids"][1:, 0][:, ~torch.isin(ids, torch.tensor([families.IMAGE, families.VIDEO]))]
    assert torch.equal(kept, text)
    louder = {**inputs, "input_features": inputs["input_features"] + 1}
    with prune(model, FSR(keep=3, relevance="none")), torch.no_grad():
        assert (model(**inputs).logits - model(**louder).logits).abs().max() > 1e-3
        feature(name, "sound beside pictures and clips left alone")
