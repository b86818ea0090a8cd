"""`fsr ask` and `fsr view` on saved tiny checkpoints of the families whose processors need torchvision.

    python tests/torchvision_families.py FOLDER FAMILY...

A program of its own, because an importable torchvision switches the image processors of a whole process. Writes
FOLDER/FAMILY.json: what `fsr ask` printed and where the pages are, or the traceback.
"""

from __future__ import annotations

import copy
import io
import json
import sys
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torchvision_schemas  # noqa: F401  (before anything that imports torchvision)
import transformers as t
from PIL import Image

import families
import tiny
from family_models_recent import gemma3n_config
from fsr.adapters import find
from fsr.cli import main

KEEP = 3
QUESTION = "what colour is the dog ?"
TILE = {"height": families.SIDE, "width": families.SIDE}
QWEN = {
    families.IMAGE: ("image_token", "<|image_pad|>"),
    families.VIDEO: ("video_token", "<|video_pad|>"),
    families.OPEN: ("vision_bos_token", "<|vision_start|>"),
    families.CLOSE: ("vision_eos_token", "<|vision_end|>"),
}
PLAIN = {families.IMAGE: ("image_token", "<image>"), families.VIDEO: ("video_token", "<video>")}


def tokenizer(named: dict[int, tuple[str, str]], newline: bool = False) -> Any:
    """One id per word, `named` {id: (attribute, token)} at the ids that the tiny models know.

    newline: line breaks are words too, as for every real tokenizer (SmolVLM's prompts need them).
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*tiny.SPECIAL, *tiny.WORDS]
    words += [f"<unused{i}>" for i in range(len(words), families.VOCAB)]
    words[tiny.SPECIAL.index("<image>")] = "<unused4>"
    for number, (_, token) in named.items():
        words[number] = token
    if newline:
        words[families.BREAK] = "\n"
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed") if newline else pre_tokenizers.WhitespaceSplit()
    return t.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=dict(named.values()), padding_side="left", model_max_length=4096,
    )  # fmt: skip


def processor_of(name: str) -> Any:
    """The family's own processor, small."""
    if name.endswith("omni"):
        named = {
            **QWEN,
            77: ("audio_bos_token", "<|audio_bos|>"),
            78: ("audio_token", "<|AUDIO|>"),
            79: ("audio_eos_token", "<|audio_eos|>"),
        }
        sizes = dict(patch_size=4, merge_size=2, temporal_patch_size=2)
        sizes |= dict(size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48})
        kind = {"qwen2.5-omni": "Qwen2_5Omni", "qwen3-omni": "Qwen3OmniMoe"}[name]
        return getattr(t, f"{kind}Processor")(
            image_processor=t.Qwen2VLImageProcessor(**sizes), video_processor=t.Qwen2VLVideoProcessor(**sizes),
            feature_extractor=t.WhisperFeatureExtractor(feature_size=16), tokenizer=tokenizer(named),
            chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
        )  # fmt: skip
    if name == "llama4":
        named = {
            families.IMAGE: ("patch_token", "<|patch|>"),
            families.OPEN: ("start_of_image_token", "<|image_start|>"),
            families.CLOSE: ("end_of_image_token", "<|image_end|>"),
            families.LABELS: ("image_token", "<|image|>"),
            families.LABELS + 1: ("tile_x_separator_token", "<|tile_x_separator|>"),
            families.LABELS + 2: ("tile_y_separator_token", "<|tile_y_separator|>"),
        }
        return t.Llama4Processor(
            image_processor=t.Llama4ImageProcessor(size=TILE, max_patches=6), tokenizer=tokenizer(named),
            patch_size=families.PATCH, chat_template=template("<|image|>"),
        )  # fmt: skip
    if name == "gemma3n":
        named = {
            families.IMAGE: ("image_token", "<image_soft_token>"),
            families.OPEN: ("boi_token", "<start_of_image>"),
            families.CLOSE: ("eoi_token", "<end_of_image>"),
            77: ("audio_token", "<audio_soft_token>"),
            78: ("boa_token", "<start_of_audio>"),
            79: ("eoa_token", "<end_of_audio>"),
        }
        return t.Gemma3nProcessor(
            feature_extractor=t.Gemma3nAudioFeatureExtractor(),
            image_processor=t.SiglipImageProcessor(size={"height": 192, "width": 192}), tokenizer=tokenizer(named),
            image_seq_length=16, chat_template=template("<image_soft_token>"),
        )  # fmt: skip
    if name.startswith("qwen"):
        sizes = dict(patch_size=4, merge_size=2, temporal_patch_size=2)
        sizes |= dict(size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48})
        kind = {"qwen2-vl": "Qwen2VL", "qwen2.5-vl": "Qwen2_5_VL"}.get(name, "Qwen3VL")
        clips = t.Qwen3VLVideoProcessor if kind == "Qwen3VL" else t.Qwen2VLVideoProcessor
        return getattr(t, f"{kind}Processor")(
            image_processor=t.Qwen2VLImageProcessor(**sizes), video_processor=clips(**sizes),
            tokenizer=tokenizer(QWEN), chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
        )  # fmt: skip
    if name.startswith("glm"):
        named = {
            families.IMAGE: ("image_token", "<|image|>"),
            families.VIDEO: ("video_token", "<|video|>"),
            families.OPEN: ("image_start_token", "<|begin_of_image|>"),
            families.CLOSE: ("image_end_token", "<|end_of_image|>"),
            75: ("video_start_token", "<|begin_of_video|>"),
            76: ("video_end_token", "<|end_of_video|>"),
        }
        sizes = dict(patch_size=4, merge_size=2, temporal_patch_size=2)
        sizes |= dict(size={"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 48 * 48})
        kind = "Glm46V" if name == "glm46v" else "Glm4v"
        return getattr(t, f"{kind}Processor")(
            image_processor=getattr(t, f"{kind}ImageProcessor")(**sizes),
            video_processor=getattr(t, f"{kind}VideoProcessor")(**sizes), tokenizer=tokenizer(named),
            chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
        )  # fmt: skip
    if name in ("mistral3", "pixtral"):
        named = {
            families.IMAGE: ("image_token", "[IMG]"),
            families.BREAK: ("image_break_token", "[IMG_BREAK]"),
            families.CLOSE: ("image_end_token", "[IMG_END]"),
        }
        return t.PixtralProcessor(
            image_processor=t.PixtralImageProcessor(
                patch_size={"height": 4, "width": 4}, size={"longest_edge": 32}
            ),
            tokenizer=tokenizer(named), patch_size=4, spatial_merge_size=2 if name == "mistral3" else 1,
            chat_template=template("[IMG]"),
        )  # fmt: skip
    if name == "gemma4":
        named = {
            families.IMAGE: ("image_token", "<|image|>"),
            families.VIDEO: ("video_token", "<|video|>"),
            families.OPEN: ("boi_token", "<|image>"),
            families.CLOSE: ("eoi_token", "<image|>"),
            77: ("audio_token", "<|audio|>"),
            78: ("boa_token", "<|audio>"),
            79: ("eoa_token", "<audio|>"),
        }
        sizes = dict(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
        return t.Gemma4Processor(
            feature_extractor=t.Gemma4AudioFeatureExtractor(), image_processor=t.Gemma4ImageProcessor(**sizes),
            video_processor=t.Gemma4VideoProcessor(**sizes), tokenizer=tokenizer(named),
            chat_template=template("<|image|>"),
        )  # fmt: skip
    if name == "llava-onevision":
        return t.LlavaOnevisionProcessor(
            image_processor=t.LlavaOnevisionImageProcessor(size=TILE, image_grid_pinpoints=families.PINPOINTS),
            video_processor=t.LlavaOnevisionVideoProcessor(size=TILE), tokenizer=tokenizer(PLAIN),
            num_image_tokens=16, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_2",
            chat_template=template("<image>"),
        )  # fmt: skip
    if name == "llava-next-video":
        return t.LlavaNextVideoProcessor(
            image_processor=t.LlavaNextImageProcessor(
                size={"shortest_edge": families.SIDE}, crop_size=TILE, image_grid_pinpoints=families.PINPOINTS
            ),
            video_processor=t.LlavaNextVideoVideoProcessor(size={"shortest_edge": families.SIDE}, crop_size=TILE),
            tokenizer=tokenizer(PLAIN), patch_size=families.PATCH, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=template("<image>"),
        )  # fmt: skip
    if name.startswith("internvl"):
        named = {
            families.IMAGE: ("context_image_token", "<IMG_CONTEXT>"),
            families.VIDEO: ("video_token", "<video>"),
            families.OPEN: ("start_image_token", "<img>"),
            families.CLOSE: ("end_image_token", "</img>"),
        }
        return t.InternVLProcessor(
            image_processor=t.GotOcr2ImageProcessor(size=TILE, max_patches=4),
            video_processor=t.InternVLVideoProcessor(size=TILE), tokenizer=tokenizer(named), image_seq_length=4,
            chat_template=template("<IMG_CONTEXT>"),
        )  # fmt: skip
    if name == "smolvlm":
        named = {
            **PLAIN,
            families.OPEN: ("fake_image_token", "<fake_token_around_image>"),
            families.LABELS: ("global_image_token", "<global-img>"),
            families.CLOSE: ("end_of_utterance_token", "<end_of_utterance>"),
        }
        sizes = dict(size={"longest_edge": 2 * families.SIDE}, max_image_size={"longest_edge": families.SIDE})
        return t.SmolVLMProcessor(
            image_processor=t.SmolVLMImageProcessor(**sizes),
            video_processor=t.SmolVLMVideoProcessor(**sizes),
            tokenizer=tokenizer(named, newline=True),
            image_seq_len=4,
            chat_template=template("<image>"),
        )
    if name == "gemma3":
        named = {
            families.IMAGE: ("image_token", "<image_soft_token>"),
            families.OPEN: ("boi_token", "<start_of_image>"),
            families.CLOSE: ("eoi_token", "<end_of_image>"),
        }
        return t.Gemma3Processor(
            image_processor=t.Gemma3ImageProcessor(size=TILE), tokenizer=tokenizer(named), image_seq_length=16,
            chat_template=template("<start_of_image>"),
        )  # fmt: skip
    raise SystemExit(f"no processor for {name!r}")


def template(picture: str) -> str:
    """The chat template of the tiny models with another placeholder."""
    return tiny.CHAT_TEMPLATE.replace("<image>", picture)


def command(*words: str) -> str:
    """What `fsr` prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        status = main(list(words))
    if status:
        raise RuntimeError(f"fsr {' '.join(words)} ended with {status}")
    return out.getvalue()


@torch.no_grad()
def as_timm_attends(model: Any) -> dict[str, Any]:
    """Saliency of Gemma 3n, against the attention weights that timm's own code computes and the tower's own pooling."""
    pixels = torch.randn(2, 3, 192, 192, generator=torch.Generator().manual_seed(3))
    units = find(model).encode({"pixel_values": pixels}, frozenset({"saliency"}))[0].units
    tower, weights = model.model.vision_tower.timm_model, []
    attention = [m for m in tower.modules() if type(m).__name__ == "MultiQueryAttention2d" and m.kv_stride == 1][-2]
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_hook(lambda module, args, out: weights.append(out))
    tower(pixels)
    handle.remove()
    received = weights[0].mean((1, 2)).unflatten(1, (6, 6))[:, None]  # 192 / 32
    fine = torch.nn.functional.interpolate(received, size=(12, 12), mode="nearest")  # 192 / 16
    expected = torch.nn.functional.avg_pool2d(fine, 3).flatten(1)
    gap = max(float((u.saliency - e).abs().max() / e.max()) for u, e in zip(units, expected))
    return {"cells": received[0].numel(), "tokens": units[0].count, "gap": gap}


def show(name: str, folder: Path) -> dict[str, Any]:
    """Save a checkpoint, ask it, draw its page."""
    saved = folder / name
    if name == "gemma3n":  # the published tower, its channels divided by sixteen
        narrow = dict(channel_multiplier=1 / 16, msfa_output_resolution=4)
        config = gemma3n_config(architecture="mobilenetv5_300m_enc", hidden_size=2048, model_args=narrow)
        model = families.made("Gemma3nForConditionalGeneration", config, "sdpa")
    else:
        model = copy.deepcopy(families.model_of(name))
    if name == "llama4":  # its processor makes bfloat16, which a model of another type refuses without pruning as well
        model = model.bfloat16()
    model.save_pretrained(saved)
    result: dict[str, Any] = as_timm_attends(model) if name == "gemma3n" else {}
    processor_of(name).save_pretrained(saved)
    picture = folder / "picture.png"
    image = tiny.picture(2).resize((96, 60), Image.Resampling.NEAREST)
    image.save(picture)
    common = ("--model", str(saved), "--image", str(picture), "--device", "cpu")
    ask = ("ask", QUESTION, *common, "--json")
    pages: dict[str, str] = {}
    result["pages"] = pages
    for relevance in ("none", "embedding"):
        options = ("--keep", str(KEEP), "--relevance", relevance)
        result[relevance] = command(*ask, *options)
        pages[relevance] = str(folder / f"{name}-{relevance}.html")
        command("view", QUESTION, *common, *options, "--out", pages[relevance])
    result["whole"] = command(*ask, "--keep", "1.0", "--compare", "--relevance", "none")
    processor = t.AutoProcessor.from_pretrained(saved)
    result["image_processor"] = type(processor.image_processor).__module__
    turn = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]
    ids = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    result["placeholders"] = int(sum(i == families.IMAGE for i in ids[0]))
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    for family in sys.argv[2:]:
        began = time.perf_counter()
        try:
            told = show(family, where)
        except (Exception, SystemExit):
            told = {"error": traceback.format_exc()}
        told["seconds"] = time.perf_counter() - began
        (where / f"{family}.json").write_text(json.dumps(told), encoding="utf-8")
