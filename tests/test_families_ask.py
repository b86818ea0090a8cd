"""`fsr ask --model FOLDER` for saved tiny checkpoints of the families whose processors work without torchvision."""

from __future__ import annotations

import copy
import json

import pytest

import families
import tiny
from fsr.cli import main

TEMPLATE = tiny.CHAT_TEMPLATE


def processor_of(name):
    import transformers as t

    tile = {"height": families.SIDE, "width": families.SIDE}
    tokenizer = tiny.word_tokenizer()
    common = dict(tokenizer=tokenizer, chat_template=TEMPLATE)
    if name == "llava":
        images = t.CLIPImageProcessorPil(size={"shortest_edge": families.SIDE}, crop_size=tile)
        return t.LlavaProcessor(
            image_processor=images, patch_size=families.PATCH, vision_feature_select_strategy="default",
            image_token="<image>", num_additional_image_tokens=1, **common,
        )  # fmt: skip
    if name == "llava-next":
        images = t.LlavaNextImageProcessorPil(
            size={"shortest_edge": families.SIDE}, crop_size=tile, image_grid_pinpoints=families.PINPOINTS
        )
        return t.LlavaNextProcessor(
            image_processor=images, patch_size=families.PATCH, vision_feature_select_strategy="default",
            image_token="<image>", num_additional_image_tokens=1, **common,
        )  # fmt: skip
    if name == "idefics3":
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<image>", "<fake_token_around_image>", "<global-img>"]}
        )
        images = t.Idefics3ImageProcessorPil(
            size={"longest_edge": families.SIDE},
            max_image_size={"longest_edge": families.SIDE},
            do_image_splitting=False,
        )
        return t.Idefics3Processor(image_processor=images, image_seq_len=4, **common)
    assert name == "paligemma"
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tiny.SPECIAL.index("<image>")
    images = t.SiglipImageProcessorPil(size=tile)
    images.image_seq_length = 16
    return t.PaliGemmaProcessor(image_processor=images, **common)


@pytest.mark.parametrize("name", ["llava", "llava-next", "idefics3", "paligemma"])
def test_ask_a_saved_checkpoint(name, tmp_path, capsys, feature):
    model = copy.deepcopy(families.model_of(name))
    model.config.image_token_id = tiny.SPECIAL.index("<image>")
    model.generation_config.suppress_tokens = [tiny.SPECIAL.index("<image>")]
    model.save_pretrained(tmp_path)
    processor_of(name).save_pretrained(tmp_path)
    command = ["ask", "what colour is the dog ?", "--model", str(tmp_path), "--keep", "3", "--json", "--device", "cpu"]
    for relevance in ("none", "embedding"):
        assert main([*command, "--relevance", relevance]) == 0
        out = json.loads(capsys.readouterr().out)
        assert out["keep"] == 3 and out["total"] > 3 and len(out["kept_rows"]) == 3
        assert (out["relevance"] is None) == (relevance == "none")
    feature(name, "fsr ask --model FOLDER")
