"""Tiny random models of every family with hand-made prompts: two pictures, one picture and none, and clips where there
are any.

Prompts are written by hand as token numbers, so no tokenizer and no torchvision is needed: `PAD` 0, words below 60,
then the marks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from family_models import (  # noqa: F401  (tests take them from here)
    BREAK,
    CLOSE,
    IMAGE,
    LABELS,
    OPEN,
    PAD,
    PATCH,
    PINPOINTS,
    SIDE,
    SIZES,
    VIDEO,
    VOCAB,
    _gemma3,
    _internvl,
    _llava,
    _llava_next,
    _llava_next_video,
    _onevision,
    _paligemma,
    _qwen,
    _tiled,
    clip_vision,
    gemma_text,
    made,
    noise,
    siglip_vision,
    text,
)
from family_models_recent import gemma3n, gemma4, glm, internvl_recent, llama4, mistral3, omni, pixtral, qwen_recent
from fsr.adapters import find


@dataclass(frozen=True)
class Family:
    """build(attention) -> model; pictures(n, seed) -> vision keyword arguments for n pictures; clip(seed) likewise or
    None.

    marks: what stands around the placeholders of one picture (a function of the picture's number of tokens).
    types: name of the per-token types that the model reads, or None.
    mixes: False where Transformers takes pictures or clips in one call, not both.
    """

    name: str
    build: Callable[[str], Any]
    pictures: Callable[[int, int], dict[str, Any]]
    clip: Callable[[int], dict[str, Any]] | None = None
    marks: Callable[[int], list[int]] = lambda n: [OPEN, *[IMAGE] * n, CLOSE]
    video_marks: Callable[[int], list[int]] = lambda n: [OPEN, *[VIDEO] * n, CLOSE]
    types: str | None = None
    mixes: bool = True


# ------------------------------------------------------------------------------------------------------------- the pict


def _each(seed: int, n: int, *shape: int) -> torch.Tensor:
    """Picture i of a batch depends on seed + i alone, so that a row can be made again by itself."""
    return torch.stack([noise(seed + i, *shape) for i in range(n)])


def _plain(n: int, seed: int) -> dict[str, Any]:
    return {"pixel_values": _each(seed, n, 3, SIDE, SIDE)}


def _anyres(n: int, seed: int) -> dict[str, Any]:
    sizes = torch.tensor([SIZES[(seed + i) % len(SIZES)] for i in range(n)])
    return {"pixel_values": _each(seed, n, 5, 3, SIDE, SIDE), "image_sizes": sizes}


def _frames(seed: int) -> dict[str, Any]:
    return {"pixel_values_videos": _each(seed, 1, 3, 3, SIDE, SIDE)}


GRIDS = [[1, 8, 12], [1, 6, 8], [1, 8, 8]]


def _packed(n: int, seed: int) -> dict[str, Any]:
    grids = [GRIDS[(seed + i) % len(GRIDS)] for i in range(n)]
    patches = [noise(seed + i, h * w, 96) for i, (_, h, w) in enumerate(grids)]
    return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}


def _packed_clip(seed: int) -> dict[str, Any]:
    return {"pixel_values_videos": noise(seed, 2 * 4 * 6, 96), "video_grid_thw": torch.tensor([[2, 4, 6]])}


def _packed_clip_timed(seed: int) -> dict[str, Any]:
    return {**_packed_clip(seed), "video_second_per_grid": torch.tensor([1.0])}


def _tiles(n: int, seed: int) -> dict[str, Any]:
    """InternVL: pictures with an odd seed have two crops side by side and their thumbnail, the others one tile."""
    groups = []
    for i in range(n):
        tiles = noise(seed + i, 2 if (seed + i) % 2 else 1, 3, SIDE, SIDE)
        if len(tiles) == 2:
            small = torch.nn.functional.avg_pool2d(torch.cat([tiles[0], tiles[1]], -1)[None], (1, 2))
            tiles = torch.cat([tiles, small])
        groups.append(tiles)
    return {"pixel_values": torch.cat(groups), "tiles": [len(g) for g in groups]}


def _crops(n: int, seed: int) -> dict[str, Any]:
    """SmolVLM: pictures of 2 x 2 crops and a whole view, or the whole view alone. `tiles` is for the prompt."""
    tiles = [5 if (seed + i) % 2 else 1 for i in range(n)]
    pixels = torch.cat([noise(seed + i, t, 3, SIDE, SIDE) for i, t in enumerate(tiles)])
    return {"pixel_values": pixels, "tiles": tiles}


def _tile_marks(n: int) -> list[int]:
    """Llama 4: `<|tile_x_separator|>`, `<|tile_y_separator|>` behind two crops, `<|image|>` before the whole view."""
    tokens = [IMAGE] * 4
    crops = [] if n == 4 else [*tokens, LABELS + 1, *tokens, LABELS + 2]
    return [OPEN, *crops, LABELS, *tokens, CLOSE]


def _crop_marks(n: int) -> list[int]:
    """`<fake><row_1_col_1>....<fake>` around every tile of four tokens, a break after each row of two crops."""
    tokens = [IMAGE] * 4
    if n == 4:
        return [OPEN, LABELS, *tokens, OPEN]
    crops: list[int] = []
    for number in range(4):
        crops += [OPEN, LABELS + 1 + number, *tokens]
        crops += [BREAK] if number % 2 else []
    return [*crops, BREAK, OPEN, LABELS, *tokens, OPEN]


def _ragged(n: int, seed: int) -> dict[str, Any]:
    """Gemma 4: patches with their (x, y), padded to one length."""
    grids = [RASTERS[(seed + i) % len(RASTERS)] for i in range(n)]
    longest = max(h * w for h, w in RASTERS)
    pixels, places = torch.zeros(n, longest, 48), torch.full((n, longest, 2), -1)
    for i, (h, w) in enumerate(grids):
        pixels[i, : h * w] = noise(seed + i, h * w, 48).sigmoid()
        places[i, : h * w] = torch.stack([torch.arange(w).repeat(h), torch.arange(h).repeat_interleave(w)], -1)
    return {"pixel_values": pixels, "image_position_ids": places}


def _ragged_clip(seed: int) -> dict[str, Any]:
    """Three frames of 4 x 6 patches."""
    clip = _ragged(3, 0)
    pixels, places = clip["pixel_values"], clip["image_position_ids"]
    pixels[:], places[:] = 0, -1
    pixels[:, :24] = noise(seed, 3, 24, 48).sigmoid()
    places[:, :24] = torch.stack([torch.arange(6).repeat(4), torch.arange(4).repeat_interleave(6)], -1)
    import transformers

    clip = {"pixel_values_videos": pixels, "video_position_ids": places}
    if "num_frames_per_video" in inspect.signature(transformers.Gemma4Model.get_video_features).parameters:
        return {**clip, "num_frames_per_video": torch.tensor([3])}
    return {name: value[None] for name, value in clip.items()}


RASTERS = [[4, 6], [8, 6], [4, 4]]


def _sized(n: int, seed: int) -> dict[str, Any]:
    """Mistral 3: pictures of different sizes, padded to the largest."""
    sizes = [RASTERS[(seed + i) % len(RASTERS)] for i in range(n)]
    pixels = torch.zeros(n, 3, SIDE, SIDE)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, : 4 * h, : 4 * w] = noise(seed + i, 3, 4 * h, 4 * w)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[4 * h, 4 * w] for h, w in sizes])}


def _rows(merge: int) -> Callable[[int], list[int]]:
    """Mistral 3: a break after every row of a picture, another mark after the last."""
    width = {h * w // merge**2: w // merge for h, w in RASTERS}

    def marks(n: int) -> list[int]:
        rows = [[*[IMAGE] * width[n], BREAK]] * (n // width[n])
        return [*(token for row in rows for token in row)][:-1] + [CLOSE]

    return marks


def _stamped(n: int) -> list[int]:
    """Qwen3-VL: each of two frames in a run of its own, with a time stamp before it."""
    return [20, OPEN, *[VIDEO] * (n // 2), CLOSE, 21, OPEN, *[VIDEO] * (n // 2), CLOSE]


def _stamped_pictures(n: int) -> list[int]:
    """GLM: frames are written with the placeholder of pictures."""
    return [IMAGE if token == VIDEO else token for token in _stamped(n)]


FAMILIES = {
    f.name: f
    for f in [
        Family("llava", _llava, _plain),
        Family("llava-next", _llava_next, _anyres),
        Family("llava-next-video", _llava_next_video, _anyres, _frames),
        Family("llava-onevision", _onevision, _anyres, _frames),
        Family("qwen2-vl", _qwen("2"), _packed, _packed_clip, types="mm_token_type_ids"),
        Family("qwen2.5-vl", _qwen("2_5"), _packed, _packed_clip, types="mm_token_type_ids"),
        Family("qwen3-vl", _qwen("3"), _packed, _packed_clip, video_marks=_stamped, types="mm_token_type_ids"),
        *(
            Family(
                name,
                qwen_recent(stem, "moe" in name),
                _packed,
                _packed_clip,
                video_marks=_stamped,
                types="mm_token_type_ids",
            )
            for name, stem in {
                "qwen3-vl-moe": "Qwen3VLMoe",
                "qwen3.5": "Qwen3_5",
                "qwen3.5-moe": "Qwen3_5Moe",
            }.items()
        ),
        *(
            Family(
                name,
                glm(stem),
                _packed,
                _packed_clip,
                video_marks=_stamped_pictures,
                types="mm_token_type_ids",
                mixes=False,
            )
            for name, stem in {"glm4v": "Glm4v", "glm4v-moe": "Glm4vMoe", "glm46v": "Glm46V"}.items()
        ),
        Family("qwen2.5-omni", omni("Qwen2_5Omni"), _packed, _packed_clip_timed),
        Family("qwen3-omni", omni("Qwen3OmniMoe"), _packed, _packed_clip_timed),
        Family("gemma4", gemma4, _ragged, _ragged_clip, types="mm_token_type_ids"),
        Family("mistral3", mistral3, _sized, marks=_rows(2)),
        Family("pixtral", pixtral, _sized, marks=_rows(1)),
        Family("internvl", _internvl, _tiles),
        Family("internvl3.5", internvl_recent, _tiles),
        Family("llama4", llama4, _tiles, marks=_tile_marks),
        Family("gemma3n", gemma3n, _plain),
        Family("gemma3", _gemma3, _plain, types="token_type_ids"),
        Family("paligemma", _paligemma, _plain, types="token_type_ids"),
        Family("smolvlm", _tiled("SmolVLM"), _crops, marks=_crop_marks),
        Family("idefics3", _tiled("Idefics3"), _crops, marks=_crop_marks),
    ]
}


@cache
def model_of(name: str, attention: str = "sdpa") -> Any:
    """One model per family and attention, shared by all tests: read-only."""
    return FAMILIES[name].build(attention)


# -------------------------------------------------------------------------------------------------------------- the pro


def prompts(
    name: str, rows: list[tuple[int, int]], seed: int = 0, clip_seed: int = 50, first: int = 0, side: str = "left"
) -> dict[str, Any]:
    """A padded batch. rows: (pictures, clips) of each row. The pictures of a row come first, then its clips.

    first: number of the first row (the texts depend on it), to make a row of another batch again by itself.
    """
    family, model = FAMILIES[name], model_of(name)
    images = family.pictures(sum(n for n, _ in rows), seed) if any(n for n, _ in rows) else {}
    clips = [family.clip(clip_seed + i) for i in range(sum(v for _, v in rows))] if family.clip else []
    inputs: dict[str, Any] = {}
    lengths: dict[str, list[int]] = {"image": [], "video": []}
    tiles = images.pop("tiles", None)
    if images:
        inputs |= images
        lengths["image"] = _lengths(model, "image", images) if tiles is None else [4 * t for t in tiles]
    if name in ("smolvlm", "idefics3") and tiles:
        inputs["pixel_values"] = _by_row(images["pixel_values"], tiles, [n for n, _ in rows])
    if name == "llava-onevision" and images:
        inputs["batch_num_images"] = torch.tensor([n for n, _ in rows if n])
        lengths["image"] = _lengths(model, "image", {**images, "batch_num_images": inputs["batch_num_images"]})
    for key in clips[0] if clips else ():
        inputs[key] = torch.cat([c[key] for c in clips])
    if clips:
        lengths["video"] = _lengths(model, "video", {k: inputs[k] for k in clips[0] if k != "video_second_per_grid"})
    texts = []
    for i, (n, v) in enumerate(rows, first):
        ids = [1, 5 + i, 6]
        for _ in range(n):
            ids += [*family.marks(lengths["image"].pop(0)), 9 + i]
        for _ in range(v):
            ids += [*family.video_marks(lengths["video"].pop(0)), 12]
        texts.append([*ids, *range(30, 34 + i)])
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), PAD)
    mask = torch.zeros_like(ids)
    for i, t in enumerate(texts):
        where = slice(width - len(t), None) if side == "left" else slice(0, len(t))
        ids[i, where], mask[i, where] = torch.tensor(t), 1
    inputs |= {"input_ids": ids, "attention_mask": mask}
    if family.types:
        inputs[family.types] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
        if not family.mixes and clips:
            inputs[family.types] *= 2
        if name == "paligemma":  # 0 is the prefix, and all of a prompt is prefix
            inputs[family.types].zero_()
    return inputs


def _lengths(model: Any, modality: str, inputs: dict[str, Any]) -> list[int]:
    with torch.no_grad():
        pooled = getattr(find(model).base, f"get_{modality}_features")(**inputs, return_dict=True).pooler_output
    return [e.numel() // e.shape[-1] for e in pooled]


def _by_row(tiles: torch.Tensor, counts: list[int], rows: list[int]) -> torch.Tensor:
    """Tiles dealt out to rows and padded with empty ones, [B, most, 3, H, W]."""
    groups, at = [], 0
    for n in rows:
        size = sum(counts[:n])
        counts = counts[n:]
        groups.append(tiles[at : at + size])
        at += size
    return torch.nn.utils.rnn.pad_sequence(groups, batch_first=True)


def mixed(name: str) -> list[tuple[int, int]]:
    """Two pictures; one picture, with a clip where the family has them; text alone."""
    return [(2, 0), (1, 1 if FAMILIES[name].clip and FAMILIES[name].mixes else 0), (0, 0)]


def row_alone(name: str, rows: list[tuple[int, int]], row: int) -> dict[str, Any]:
    """Row `row` of `prompts(name, rows)`, unpadded."""
    before = rows[:row]
    return prompts(name, [rows[row]], sum(n for n, _ in before), 50 + sum(v for _, v in before), row)
