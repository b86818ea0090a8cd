"""From trained stages to the folder that ships: model and processor, as Transformers and engines read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fsr.minivlm.export import steps_of
from fsr.minivlm.native.processor import build_processor, video_settings
from fsr.minivlm.native.train import NativeRecipe, load_parts
from fsr.minivlm.train import STAGES

__all__ = ["export"]


def export(stages: Path, folder: Path) -> Path:
    """Write `folder` so that `fsr.asking.load.load(folder)` works everywhere, and
    `AutoModelForImageTextToText` and `AutoProcessor` where torchvision is installed; weights in bfloat16.

    stages: where `fsr train --model mini-qwen3` left its stages.
    """
    if folder.exists():
        shutil.rmtree(folder)
    model, _ = load_parts(stages, NativeRecipe())
    model.set_attn_implementation("sdpa")
    model.generation_config.update(max_new_tokens=8, pad_token_id=0, bos_token_id=1, eos_token_id=3, do_sample=False)
    model.config.fsr_scenes = "native"
    model.bfloat16().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    settings = folder / "processor_config.json"
    stock = json.loads(settings.read_text()) | {
        "processor_class": "Qwen3VLProcessor",
        "video_processor": video_settings(),
    }
    settings.write_text(json.dumps(stock, indent=2, sort_keys=True) + "\n")
    words = folder / "tokenizer_config.json"
    words.write_text(words.read_text().replace("StillsProcessor", "Qwen3VLProcessor"))
    steps = {s: steps_of(stages / f"{s}.jsonl") for s in STAGES}
    (folder / "training.json").write_text(json.dumps(steps, indent=1))
    return folder
