"""LLaVA-Video on the OneVision classes: pooling, newlines, budgets, frames as pictures, and the published checkpoint
layout."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import families
import tiny
from fsr import FSR, FeatureError, UsageError, prepare, prune
from fsr.adapters import find
from fsr.adapters.llava_video import video_inputs
from fsr.adapters.llava_video_convert import convert

FRAMES = 3
SIDE = 7  # patches per side: odd, as SigLIP's 27, so that the two ways of pooling differ in length
IDS = [1, 5, families.VIDEO, 6, 7]


@pytest.fixture(scope="module")
def onevision():
    from transformers import LlavaOnevisionConfig

    config = LlavaOnevisionConfig(
        vision_config=families.siglip_vision(image_size=SIDE * 8), text_config=families.text(), vision_feature_layer=-1,
        image_token_id=families.IMAGE, video_token_id=families.VIDEO, vision_feature_select_strategy="full",
    )  # fmt: skip
    return families.made("LlavaOnevisionForConditionalGeneration", config, "sdpa")


def video(model, pool):
    model = copy.deepcopy(model)
    model.config.llava_video_pool = pool
    return model


@pytest.fixture(scope="module", params=["average", "bilinear"])
def model(request, onevision):
    return video(onevision, request.param)


def inputs_for(placeholders=1, clips=1):
    ids = [i for token in IDS for i in [token] * (placeholders if token == families.VIDEO else 1)]
    return {
        "input_ids": torch.tensor([ids] * clips),
        "attention_mask": torch.ones(clips, len(ids), dtype=torch.long),
        "pixel_values_videos": families.noise(0, clips, FRAMES, 3, SIDE * 8, SIDE * 8),
    }


@torch.no_grad()
def packed_by_hand(model, frames):
    """From the description, frame by frame and row by row."""
    base = model.model
    out = base.vision_tower(frames, output_hidden_states=True)
    planes = base.multi_modal_projector(out.hidden_states[-1]).unflatten(1, (SIDE, SIDE))
    rows = []
    for plane in planes:
        if model.config.llava_video_pool == "average":
            small = [[plane[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1)) for x in range(3)] for y in range(3)]
            small = torch.stack([torch.stack(line) for line in small])
        else:
            small = torch.nn.functional.interpolate(plane.permute(2, 0, 1)[None], (4, 4), mode="bilinear")[0].permute(
                1, 2, 0
            )
        for line in small:
            rows += [*line, base.image_newline]
    return torch.stack(rows)


def test_one_adapter_each(onevision, model):
    assert find(onevision).name == "llava-onevision"
    assert find(model).name == "llava-video"
    with pytest.raises(UsageError, match="13 x 13"):
        find(video(onevision, "max"))


def test_counts_of_the_published_size():
    """27 x 27 patches: 13 x 13 or 14 x 14 per frame, and a newline per row: 11648 and 13440 tokens for 64 frames."""
    for pool, rows in (("average", 13), ("bilinear", 14)):
        adapter = object.__new__(type(find(video(families.model_of("llava-onevision"), pool))))
        config = SimpleNamespace(llava_video_pool=pool, vision_config=SimpleNamespace(image_size=384, patch_size=14))
        adapter.model = SimpleNamespace(config=config)
        packed = adapter.with_newlines(adapter.pool(torch.zeros(64, 729, 1)), torch.ones(1))
        assert len(packed) == 64 * rows * (rows + 1) == {"average": 11648, "bilinear": 13440}[pool]


@torch.no_grad()
def test_whole_clip_is_what_the_description_says(model, feature):
    """Any number of placeholders: all tokens are handed over, in the described order."""
    clip = inputs_for()
    expected = packed_by_hand(model, clip["pixel_values_videos"][0])
    n = len(expected)
    before, after = torch.tensor([[1, 5]]), torch.tensor([[6, 7]])
    embed = model.get_input_embeddings()
    logits = model(inputs_embeds=torch.cat([embed(before), expected[None], embed(after)], 1)).logits
    for placeholders in (1, 5, n, n + 4):
        with prune(model, FSR(keep=n, relevance="none")) as pruned:
            got = model(**inputs_for(placeholders)).logits
        assert pruned.last.tokens_after == n and pruned.last.length_after == n + 4
        assert torch.allclose(got, logits, atol=1e-4 * float(logits.abs().max()))
    feature("llava-video", "K = N equals the published packing")


def test_budget_per_clip_and_per_frame(model, feature):
    side = 3 if model.config.llava_video_pool == "average" else 4
    report = prepare(model, FSR(keep=2, per="frame", relevance="none"), inputs_for()).report
    (selection,) = report.selections
    assert selection.total == FRAMES * side * (side + 1)
    assert report.budgets == (f"picture 0: 6 of {selection.total} tokens; by frame (3): 2, 2, 2",)
    unit = find(model).encode(inputs_for(), frozenset({"saliency"}))[0].units[0]
    assert int(unit.structural.sum()) == FRAMES * side
    assert torch.equal(unit.structural, (unit.features == model.model.image_newline).all(-1))
    assert unit.geometry.frame.tolist() == [f for f in range(FRAMES) for _ in range(side * (side + 1))]
    boxes = unit.geometry.boxes[~unit.structural][: side * side]
    assert float(boxes.min()) == pytest.approx(0, abs=1e-6) and float(boxes[:, 0].unique().numel()) == side
    whole = prepare(model, FSR(keep=6, relevance="none"), inputs_for()).report
    assert whole.tokens_after == 6
    feature("llava-video", "budget per clip or per frame, row newlines structural")


@pytest.mark.parametrize("options", [dict(), dict(num_beams=2, num_return_sequences=2), dict(use_cache=False)])
def test_two_clips_generate_as_each_alone(model, options, feature):
    method = FSR(keep=5, relevance="none")
    both = inputs_for(clips=2)
    width = len(IDS)
    with prune(model, method) as pruned:
        together = model.generate(**both, max_new_tokens=3, do_sample=False, **options)
        assert pruned.last.length_after == 4 + 5
        copies = together.shape[0] // 2
        for row in range(2):
            alone = model.generate(
                **{k: v[row : row + 1] for k, v in both.items()}, max_new_tokens=3, do_sample=False, **options
            )
            assert torch.equal(together[row * copies : (row + 1) * copies, width:], alone[:, width:])
    feature("llava-video", "batched row = row alone")
    with pytest.raises(FeatureError, match="give one for each"):
        prepare(
            model,
            method,
            {**both, "input_ids": torch.tensor([[1, 5, 6], [1, 5, 6]]), "attention_mask": torch.ones(2, 3)},
        )


def test_frames_are_pictures():
    from transformers import SiglipImageProcessorPil

    processor = SimpleNamespace(
        image_processor=SiglipImageProcessorPil(size={"height": 56, "width": 56}), tokenizer=tiny.word_tokenizer(),
        video_token="<image>",
    )  # fmt: skip
    clips = [[tiny.picture(i) for i in range(4)], [tiny.picture(i) for i in range(4, 8)]]
    out = video_inputs(processor, clips, ["<image> what colour ?", "<image> how many ?"])
    assert out["pixel_values_videos"].shape == (2, 4, 3, 56, 56)
    direct = processor.image_processor(tiny.picture(5).resize((56, 56)), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(out["pixel_values_videos"][1, 1], direct)
    assert (out["input_ids"] == tiny.SPECIAL.index("<image>")).sum(-1).tolist() == [1, 1]
    with pytest.raises(UsageError, match="same number of frames"):
        video_inputs(processor, [clips[0], clips[1][:2]], ["<image>", "<image>"])
    with pytest.raises(UsageError, match="exactly one"):
        video_inputs(processor, clips, ["<image>", "no clip"])


# ---------------------------------------------------------------------------------------------------------------
# conversion


def published(model, folder, layers):
    """The weights of `model` in the layout of the published checkpoint, with a spare tower layer as in full SigLIP
    files."""
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in (
            ("model.language_model.", "model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
            ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ):
            if key.startswith(ours):
                key = theirs + key[len(ours) :]
                break
        state[key] = value.contiguous()
    spare = f"model.vision_tower.vision_tower.vision_model.encoder.layers.{layers}.layer_norm1.weight"
    state[spare] = torch.zeros(32)
    keys = sorted(state)
    for i, part in enumerate((keys[::2], keys[1::2])):
        save_file({k: state[k] for k in part}, str(folder / f"model-{i}.safetensors"))
    text = model.config.text_config
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    config = {n: getattr(text, n) for n in names} | {
        "mm_spatial_pool_mode": "bilinear", "mm_newline_position": "grid", "image_token_index": families.IMAGE,
        "video_token_index": families.VIDEO, "rms_norm_eps": text.rms_norm_eps,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def test_published_checkpoint_is_converted(tmp_path):
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

    vision = families.siglip_vision(image_size=SIDE * 8)
    text = Qwen2Config(
        vocab_size=families.VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-1, vision_feature_select_strategy="full",
        image_token_id=families.IMAGE, video_token_id=families.VIDEO, tie_word_embeddings=False,
    )  # fmt: skip
    model = video(families.made("LlavaOnevisionForConditionalGeneration", config, "sdpa"), "bilinear")
    source = tmp_path / "published"
    source.mkdir()
    published(model, source, vision.num_hidden_layers)
    convert(source, tmp_path / "converted", vision.to_dict())
    loaded = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "converted").eval()
    assert loaded.config.llava_video_pool == "bilinear" and find(loaded).name == "llava-video"
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert set(ours) == set(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    for m in (model, loaded):
        with prune(m, FSR(keep=5, relevance="none")) as pruned:
            m(**inputs_for())
    assert pruned.last.tokens_after == 5

    (source / "model-1.safetensors").unlink()
    with pytest.raises(UsageError, match="missing"):
        convert(source, tmp_path / "half", vision.to_dict())
    save_file({"model.mm_projector.4.weight": torch.zeros(1)}, str(source / "model-1.safetensors"))
    with pytest.raises(UsageError, match="no key of a published"):
        convert(source, tmp_path / "odd", vision.to_dict())
