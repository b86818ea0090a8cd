"""From trained stages to the folder that ships: model, processor and the text tower that pairs with the vision
tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import processors
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from fsr.minivlm.build import build_clip
from fsr.minivlm.scenes import PATCH, SIDE
from fsr.minivlm.train import Recipe, load_parts
from fsr.minivlm.train_vision import MEAN, STD
from fsr.minivlm.vocabulary import CHAT_TEMPLATE, tokenizer
from fsr.signals.clip_twin import ClipTwin, save_twin

__all__ = ["export", "mini_processor", "steps_of", "text_tower_tokenizer"]


def mini_processor() -> LlavaProcessor:
    """Pictures to 144 x 144 with CLIP's normalisation; one <image> becomes 144 placeholders."""
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def text_tower_tokenizer() -> PreTrainedTokenizerFast:
    """The same words between <bos> and <eos>: the text tower pools at <eos>."""
    words = tokenizer()
    ids = [("<bos>", words.convert_tokens_to_ids("<bos>")), ("<eos>", words.convert_tokens_to_ids("<eos>"))]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ids)
    words.padding_side = "right"
    words.model_max_length = 32
    return words


def export(stages: Path, folder: Path, sign: int = 1) -> Path:
    """Write `folder` so that `AutoModelForImageTextToText.from_pretrained(folder)` works; weights in bfloat16.

    stages: where `fsr train` left its stages. sign: of the text tower's patch similarity, as measured (see the card).
    """
    if folder.exists():
        shutil.rmtree(folder)
    model, _ = load_parts(stages, Recipe())
    model.set_attn_implementation("sdpa")
    model.generation_config.update(max_new_tokens=8, pad_token_id=0, bos_token_id=1, eos_token_id=3, do_sample=False)
    model.bfloat16().save_pretrained(folder)
    mini_processor().save_pretrained(folder)
    clip = build_clip()
    state = torch.load(stages / "vision.pt", map_location="cpu", weights_only=True)["modules"]
    clip.load_state_dict({k.removeprefix("clip."): v for k, v in state.items() if k.startswith("clip.")})
    save_twin(folder, ClipTwin.from_clip(clip.bfloat16().eval(), text_tower_tokenizer(), sign=sign, layer=-2))
    steps = {s: steps_of(stages / f"{s}.jsonl") for s in ("vision", "symbols", "fit", "language")}
    (folder / "training.json").write_text(json.dumps(steps, indent=1))
    return folder


def steps_of(log: Path) -> list[dict[str, float]]:
    """At most 20 evenly spaced lines of a training log, the first and the last among them: the curve in the card."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [lines[i] for i in sorted({round(j * (len(lines) - 1) / 19) for j in range(20)})]
