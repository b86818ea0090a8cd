"""Prompts with picture files of every kind, drawn at random (test_calls_fuzz.py): each file has an exact twin in plain
RGB, and a batch of files must give what each row gives alone with the twins."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

import families
import picture_files as files
import tiny
from fsr import FSR, prune
from fsr.asking.chat import chat_batch
from fsr.asking.images import decode_image
from fsr.methods import FastV
from test_calls_rows import close
from test_families_ask import processor_of

METHODS = {
    "fsr": (FSR(keep=3), "none"),
    "first-layer": (FSR(keep=3), "first-layer"),
    "embedding": (FSR(keep=0.4), "embedding"),
    "chain": (FSR(keep=5) | FastV(layer=1, keep=2), "embedding"),
}
QUESTIONS = ("what colour is the dog ?", "where is the small red car ?", "how many are there in the photo ?", "yes ?")
FAMILIES = ("llava", "llava-next", "idefics3", "paligemma")


@dataclass(frozen=True)
class Prompts:
    """rows: for each row the kinds of its pictures and the number of its question. door: how files come in: opened and
    given to the processor, or to `chat_batch` as PIL has them."""

    family: str
    method: str
    rows: tuple[tuple[tuple[str, ...], int], ...]
    door: str
    call: str
    seed: int


@st.composite
def prompts(draw: Any) -> Prompts:
    family, door = draw(st.sampled_from(FAMILIES)), draw(st.sampled_from(["files", "files", "chat"]))
    least = 1 if door == "chat" or family == "paligemma" else 0  # that processor takes no prompt without a picture
    most = 1 if door == "chat" else 3
    kinds = st.lists(st.sampled_from(sorted(KINDS)), min_size=least, max_size=most).map(tuple)
    row = st.tuples(kinds, st.integers(0, len(QUESTIONS) - 1))
    rows = draw(st.lists(row, min_size=1, max_size=3).filter(lambda r: any(k for k, _ in r)))
    method = draw(st.sampled_from(sorted(METHODS)))
    return Prompts(family, method, tuple(rows), door, draw(st.sampled_from(["generate", "forward"])),
                   draw(st.integers(0, 30)))  # fmt: skip


def grey(seed: int, height: int, width: int) -> Any:
    levels = np.kron(files.noise(seed, 4, 5), np.ones((height // 4 + 1, width // 5 + 1), np.uint8))[:height, :width]
    levels[0, 0], levels[-1, -1] = 0, 255  # so that no reader takes it for a shallower depth
    return levels


def colour(seed: int, height: int, width: int) -> Any:
    return np.dstack([grey(seed + i, height, width) for i in range(3)])


def plain(levels: Any) -> Any:
    return np.repeat(levels[..., None], 3, 2)


def holes(seed: int, pixels: Any) -> Any:
    return (grey(seed + 7, *pixels.shape[:2]) > 90) * np.uint8(255)


def _rgb(kind: str, **options: Any) -> Any:
    def made(seed: int, h: int, w: int) -> Any:
        pixels = colour(seed, h, w)
        return files.saved(Image.fromarray(pixels), kind, **options), pixels

    return made


def _clear(kind: str, **options: Any) -> Any:
    def made(seed: int, h: int, w: int) -> Any:
        pixels = colour(seed, h, w)
        alpha = holes(seed, pixels)
        shown = np.where(alpha[..., None] > 0, pixels, np.uint8(255))
        return files.saved(Image.fromarray(np.dstack([pixels, alpha])), kind, **options), shown

    return made


def _grey(made: Any) -> Any:
    def found(seed: int, h: int, w: int) -> Any:
        levels = grey(seed, h, w)
        return made(levels), plain(levels)

    return found


def _turned(seed: int, h: int, w: int) -> Any:
    pixels, turn = colour(seed, h, w), 2 + seed % 7
    block = files.exif(turn, files.BROKEN)
    return files.saved(Image.fromarray(pixels), "PNG", exif=block), files.ORIENTED[turn](pixels)


def _palette(seed: int, h: int, w: int) -> Any:
    picture = Image.fromarray(colour(seed, h, w)).quantize(16)
    return files.saved(picture, "PNG"), np.asarray(picture.convert("RGB"))


def _pages(seed: int, h: int, w: int) -> Any:
    first, second = (Image.fromarray(colour(seed + i, h, w)) for i in (0, 1))
    return files.saved(first, "TIFF", save_all=True, append_images=[second]), np.asarray(first)


def _black_and_white(seed: int, h: int, w: int) -> Any:
    picture = Image.fromarray(grey(seed, h, w)).convert("1")
    return files.saved(picture, "PNG"), np.asarray(picture.convert("RGB"))


KINDS = {
    "RGB PNG": _rgb("PNG"),
    "RGB WebP": _rgb("WEBP", lossless=True),
    "RGB BMP": _rgb("BMP"),
    "RGBA PNG": _clear("PNG"),
    "RGBA WebP": _clear("WEBP", lossless=True, exact=True),
    "RGBA TIFF": _clear("TIFF"),
    "grey": _grey(lambda g: files.saved(Image.fromarray(g), "PNG")),
    "grey and alpha": _grey(lambda g: files.saved(Image.fromarray(np.dstack([g, g * 0 + 255])), "PNG")),
    "16-bit PNG": _grey(lambda g: files.saved(Image.fromarray(g.astype(np.uint16) * 257), "PNG")),
    "16-bit TIFF": _grey(lambda g: files.tiff(g.astype(np.uint16) * 257)),
    "32-bit TIFF": _grey(lambda g: files.tiff(g.astype(np.uint32) * 0x01010101)),
    "float TIFF": _grey(lambda g: files.tiff((g / 255).astype(np.float32))),
    "inverted TIFF": _grey(lambda g: files.tiff(65535 - g.astype(np.uint16) * 257, inverted=True)),
    "black and white": _black_and_white,
    "palette": _palette,
    "turned": _turned,
    "pages": _pages,
}
SHAPES = ((48, 48), (40, 70), (90, 33), (20, 24))


@cache
def model_of(family: str) -> tuple[Any, Any]:
    """The tiny model of the family, for the tokens of the tiny tokenizer; and its own processor."""
    import copy

    model = copy.deepcopy(families.model_of(family))
    model.config.image_token_id = tiny.SPECIAL.index("<image>")
    model.generation_config.suppress_tokens = [tiny.SPECIAL.index("<image>")]
    return model, processor_of(family)


def inputs_of(s: Prompts, rows: Any, pictures: Any) -> Any:
    """pictures: of all rows together, in order."""
    processor = model_of(s.family)[1]
    if s.door == "chat":
        made = chat_batch(processor, pictures, [QUESTIONS[q] for _, q in rows])
        return {name: value for name, value in made.items() if name != "labels"}
    at, dealt = 0, []
    for kinds, _ in rows:
        dealt.append(list(pictures[at : at + len(kinds)]))
        at += len(kinds)
    text = [
        processor.apply_chat_template(tiny.chat((QUESTIONS[q], len(kinds))), tokenize=False, add_generation_prompt=True)
        for kinds, q in rows
    ]
    nested = dealt if s.family in ("idefics3", "paligemma") else [p for row in dealt for p in row]
    made = processor(text=text, images=nested if any(dealt) else None, return_tensors="pt", padding=True)
    return {name: value for name, value in made.items() if name != "labels"}  # PaliGemma's makes them


def check(s: Prompts) -> None:
    model, processor = model_of(s.family)
    method, relevance = METHODS[s.method]
    data, twins, number = [], [], s.seed
    for kinds, _ in s.rows:
        for kind in kinds:
            made, shown = KINDS[kind](number, *SHAPES[number % len(SHAPES)])
            data.append(made)
            twins.append(Image.fromarray(np.ascontiguousarray(shown)))
            number += 1
    if s.door == "files" or any("turned" in kinds for kinds, _ in s.rows):
        opened: list[Any] = [decode_image(d, "file") for d in data]
    else:
        opened = [Image.open(io.BytesIO(d)) for d in data]
    options = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)

    def run(inputs: Any) -> Any:
        with prune(model, method, processor=processor, relevance=relevance) as pruned:
            if s.call == "generate":
                logits = torch.stack(list(model.generate(**inputs, **options).logits), 1)
            else:
                logits = model(**inputs).logits[:, -3:]
            return logits, pruned.last

    together, report = run(inputs_of(s, s.rows, opened))
    if report.questions is not None:
        asked = [QUESTIONS[q] if kinds else None for kinds, q in s.rows]
        assert list(report.questions) == asked
    at = 0
    for i, row in enumerate(s.rows):
        mine = twins[at : at + len(row[0])]
        at += len(row[0])
        alone, _ = run(inputs_of(s, [row], mine))
        assert close(together[i : i + 1], alone), (i, float((together[i : i + 1] - alone).abs().max()))
