"""Scenes that the embedded model is trained and tested on: pictograms on textured ground, some on coloured cards,
one big distractor, a sign.

`draw(rng, split)` gives a picture and everything that is true of it; the labels per patch cost nothing because the
drawer knows them.
Layout: 4 x 4 cells. A big pictogram (2 x 2 cells, salient, seldom asked about) appears in 80 % of the scenes, a sign
with two letters in 55 %, and 3 to 7 small pictograms, which cover 1 to 4 patches. Some (pictogram, card colour) and
(pictogram, quadrant) pairs never occur in the training split: see `held_out_color` and `held_out_quadrant`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "COLORS",
    "LETTERS",
    "QUADRANTS",
    "SIDE",
    "Scene",
    "SceneObject",
    "cut_noise",
    "draw",
    "glyph",
    "ground",
    "held_out_color",
    "held_out_quadrant",
    "paste",
    "sprite",
]

CLASSES = (
    "dog cat horse cow pig frog bird fish apple banana car bus "
    "bicycle plane boat house tree flower clock umbrella ball guitar cake cup"
).split()
COLORS = {
    "red": (205, 45, 45),
    "green": (50, 160, 70),
    "blue": (50, 90, 205),
    "yellow": (235, 205, 50),
    "purple": (145, 65, 175),
    "orange": (240, 140, 35),
}
BACKGROUNDS = ["grass", "sand", "water", "bricks", "wood", "snow"]
LETTERS = "EHKLMRTX"
QUADRANTS = ["top-left", "top-right", "bottom-left", "bottom-right"]
SIDE = 144
CELL = 36
PATCH = 12
Split = Literal["train", "test"]
World = Literal["mini", "native"]  # these scenes, or those of `fsr.minivlm.native.scenes`


@dataclass(frozen=True)
class SceneObject:
    """One pictogram. box: (x0, y0, x1, y1) in pixels; cells: rows and columns it occupies; color: index into COLORS
    or -1 (no card); middle: (x, y) of the picture's middle in pixels."""

    kind: int
    color: int
    box: tuple[int, int, int, int]
    cells: tuple[tuple[int, int], ...]
    big: bool
    middle: tuple[float, float] = (SIDE / 2, SIDE / 2)

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def quadrant(self) -> int:
        """Index into QUADRANTS."""
        x, y = self.center
        return 2 * int(y > self.middle[1]) + int(x > self.middle[0])


@dataclass(frozen=True)
class Scene:
    """A picture [H, W, 3] uint8 and its truth; H and W are 144 here (see `fsr.minivlm.native_scenes` for others).

    owner: [h, w], a raster of visual tokens (12 x 12 here): object index, -2 the sign, -1 ground. letter: [h, w], 0
    none, 1 + 8 * slot + letter otherwise. cell: pixels per side of a layout cell.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    background: int
    sign: tuple[int, int] | None
    sign_box: tuple[int, int, int, int] | None
    owner: np.ndarray
    letter: np.ndarray
    cell: int = CELL


def held_out_color(kind: int, color: int) -> bool:
    """True for the (pictogram, card colour) pairs, 24 of 144, that training never shows."""
    return color == (5 * kind + 1) % 6


def held_out_quadrant(kind: int, quadrant: int) -> bool:
    """True for the (pictogram, quadrant) pairs, 12 of 96, that training never shows."""
    return kind % 2 == 0 and quadrant == (kind // 2) % 4


@lru_cache(maxsize=1)
def _sprites() -> list[Image.Image]:
    with (files("fsr.minivlm") / "data" / "sprites.png").open("rb") as f:
        sheet = Image.open(f).convert("RGBA")
        sheet.load()
    return [sheet.crop((72 * (i % 8), 72 * (i // 8), 72 * (i % 8) + 72, 72 * (i // 8) + 72)) for i in range(24)]


@lru_cache(maxsize=4096)
def sprite(kind: int, size: int, turn: int) -> np.ndarray:
    """A pictogram, [size, size, 4] float32 from 0 to 255, turned by `turn` degrees."""
    picture = _sprites()[kind].rotate(turn, Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.float32)


@lru_cache(maxsize=64)
def glyph(letter: int, height: int) -> np.ndarray:
    """Coverage [height, 15] of one letter in Pillow's built-in font."""
    font = ImageFont.load_default(size=height * 1.25)
    box = font.getbbox(LETTERS[letter])
    picture = Image.new("L", (int(box[2] - box[0]) + 2, int(box[3] - box[1])), 0)
    ImageDraw.Draw(picture).text((1 - box[0], -box[1]), LETTERS[letter], font=font, fill=255, stroke_width=0.6)
    return np.asarray(picture.resize((15, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """A pool of smooth and rough noise to cut textures from: [2, 512, 512], zero mean, unit scale."""
    rng = np.random.default_rng(7)
    rough = rng.standard_normal((512, 512)).astype(np.float32)
    spectrum = np.fft.rfft2(rng.standard_normal((512, 512)))
    fy, fx = np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None]
    smooth = np.fft.irfft2(spectrum / (0.01 + np.hypot(fy, fx)) ** 1.5, s=(512, 512)).astype(np.float32)
    return np.stack([rough, smooth / smooth.std()])


def cut_noise(rng: np.random.Generator, layer: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A random piece [height, width] of rough (layer 0) or smooth (1) noise, zero mean, unit scale; 511 pixels at
    most."""
    y, x = rng.integers(0, 512 - max(height, width), 2)
    return _noise()[layer, y : y + height, x : x + width]


_GROUND = np.array(
    [[105, 150, 80], [215, 190, 140], [95, 150, 195], [165, 100, 85], [150, 110, 75], [232, 236, 242]], np.float32
)


def ground(rng: np.random.Generator, kind: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """[height, width, 3] float32. Colours jitter so much that texture is needed as well."""
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    base = _GROUND[kind] + rng.normal(0, 14, 3).astype(np.float32)
    phase = rng.uniform(0, 40, 2).astype(np.float32)
    rough, smooth = cut_noise(rng, 0, height, width), cut_noise(rng, 1, height, width)
    if kind == 0:
        shade = 16 * rough * (np.sin(xx * 1.3 + 3 * smooth) > -0.2) + 8 * smooth
    elif kind == 1:
        shade = 7 * rough + 6 * np.sin((yy + phase[0] + 5 * smooth) / 5)
    elif kind == 2:
        shade = 14 * np.sin((yy + phase[0]) / 4 + np.sin((xx + phase[1]) / 9) * 1.5 + smooth)
    elif kind == 3:
        row = np.floor((yy + phase[0]) / 9)
        joint = (((yy + phase[0]) % 9) < 1.6) | (((xx + phase[1] + 8 * (row % 2)) % 16) < 1.6)
        shade = np.where(joint, 42.0, 5 * np.sin(row * 12.9) + 4 * rough).astype(np.float32)
    elif kind == 4:
        plank = np.floor((xx + phase[0]) / 24)
        shade = 9 * np.sin(yy / 2.3 + 4 * np.sin(plank * 7) + 2.5 * smooth) + 12 * np.sin(plank * 12.9)
        shade = np.where(((xx + phase[0]) % 24) < 1.5, -45, shade)
    else:
        shade = 5 * smooth + np.where(rough > 2.1, -34, 0)
    return base + np.asarray(shade, np.float32)[..., None]


def paste(canvas: np.ndarray, picture: np.ndarray, x: int, y: int) -> np.ndarray:
    """Lay an RGBA picture over the canvas at (x, y), in place; its opacity [h, w] from 0 to 1."""
    h, w = picture.shape[:2]
    alpha = picture[..., 3:] / 255
    canvas[y : y + h, x : x + w] = canvas[y : y + h, x : x + w] * (1 - alpha) + picture[..., :3] * alpha
    return alpha[..., 0]


def _patches(mask: np.ndarray) -> np.ndarray:
    """Share of each patch that a pixel mask covers: [12, 12]."""
    n = SIDE // PATCH
    return mask.reshape(n, PATCH, n, PATCH).mean((1, 3))


def draw(rng: np.random.Generator, split: Split = "train", crowded: bool = False) -> Scene:
    """One random scene. The same generator state gives the same bytes; `split='train'` avoids the held-out pairs.
    crowded: up to 14 things, which training never showed: 9 to 13 small pictograms and seldom a big one."""
    background = int(rng.integers(len(BACKGROUNDS)))
    canvas = ground(rng, background)
    free = [(r, c) for r in range(4) for c in range(4)]
    objects: list[SceneObject] = []
    cover: list[np.ndarray] = []
    n_small = int(rng.integers(9, 14)) if crowded else int(rng.integers(3, 8))
    kinds = rng.permutation(len(CLASSES)).tolist()
    repeat = int(rng.integers(1, 5))  # how often the first kind appears: 1 to 4, for counting questions
    small = ([kinds[0]] * min(repeat, n_small) + kinds[1:])[:n_small]

    def allowed(kind: int, quadrant: int) -> bool:
        return split == "test" or not held_out_quadrant(kind, quadrant)

    def place(kind: int, cells: list[tuple[int, int]], size: int, big: bool) -> None:
        rows, cols = [r for r, _ in cells], [c for _, c in cells]
        room = CELL * (max(rows) - min(rows) + 1)
        color = -1
        if not big and rng.random() < 0.65:
            options = [c for c in range(6) if split == "test" or not held_out_color(kind, c)]
            color = options[int(rng.integers(len(options)))]
        edge = 4 if color >= 0 else 0
        slack = room - size - 2 * edge
        x = min(cols) * CELL + edge + int(rng.integers(0, slack + 1))
        y = min(rows) * CELL + edge + int(rng.integers(0, slack + 1))
        mask = np.zeros((SIDE, SIDE), np.float32)
        if color >= 0:
            tint = np.array(list(COLORS.values())[color], np.float32) + rng.normal(0, 9, 3).astype(np.float32)
            canvas[y - edge : y + size + edge, x - edge : x + size + edge] = tint
            mask[y - edge : y + size + edge, x - edge : x + size + edge] = 1
        alpha = paste(canvas, sprite(kind, size, int(rng.integers(-1, 2)) * 12), x, y)
        mask[y : y + size, x : x + size] = np.maximum(mask[y : y + size, x : x + size], alpha)
        box = (x - edge, y - edge, x + size + edge, y + size + edge)
        objects.append(SceneObject(kind, color, box, tuple(cells), big))
        cover.append(_patches(mask))

    if rng.random() < (0.3 if crowded else 0.8):
        corners = [(r, c) for r in range(3) for c in range(3)]
        kind = kinds[-1]
        r, c = corners[int(rng.integers(len(corners)))]
        cells = [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)]
        place(kind, cells, int(rng.integers(50, 67)), True)
        free = [f for f in free if f not in cells]
    sign: tuple[int, int] | None = None
    sign_box: tuple[int, int, int, int] | None = None
    letter = np.zeros((SIDE // PATCH, SIDE // PATCH), np.int64)
    sign_cover = np.zeros_like(letter, np.float32)
    if rng.random() < 0.55:
        r, c = free.pop(int(rng.integers(len(free))))
        sign = (int(rng.integers(8)), int(rng.integers(8)))
        height = int(rng.integers(17, 22))
        x, y = c * CELL + int(rng.integers(0, 3)), r * CELL + int(rng.integers(1, CELL - height - 7))
        board = np.full((height + 6, 34, 3), 244, np.float32)
        letters = np.zeros((SIDE, SIDE), np.float32)
        part = np.zeros((2, *letter.shape), np.float32)
        for slot in range(2):
            g = glyph(sign[slot], height)
            board[3 : 3 + height, 1 + 16 * slot : 16 + 16 * slot] *= 1 - 0.92 * g[..., None]
            letters[:] = 0
            letters[y : y + height + 6, x + 17 * slot : x + 17 * (slot + 1)] = 1
            part[slot] = _patches(letters)
        canvas[y : y + height + 6, x : x + 34] = board
        sign_cover = part.sum(0)
        slot_of = part.argmax(0)
        letter = np.where(part.max(0) > 0.2, 1 + 8 * slot_of + np.array(sign)[slot_of], 0)
        sign_box = (x, y, x + 34, y + height + 6)
    for kind in small:
        choices = [f for f in free if allowed(kind, 2 * (f[0] > 1) + (f[1] > 1))]
        if not choices:
            continue
        cell = choices[int(rng.integers(len(choices)))]
        free.remove(cell)
        place(kind, [cell], int(rng.integers(16, 29)), False)
    image = canvas * rng.uniform(0.85, 1.12) + 5 * cut_noise(rng, 0)[..., None]
    layers = np.stack([*cover, sign_cover])
    owner = np.where(layers.max(0) > 0.14, layers.argmax(0), -1)
    owner = np.where(owner == len(objects), -2, owner)
    return Scene(
        np.clip(image, 0, 255).astype(np.uint8),
        tuple(objects),
        background,
        sign,
        sign_box,
        owner.astype(np.int64),
        letter,
    )
