"""Scenes at many sizes and shapes for the second embedded model: the pictograms, cards, grounds and signs of
`fsr.minivlm.scenes` on a lattice of any number of cells.

A cell is 32 pixels, 2 x 2 visual tokens of 16 pixels; a picture has 24 to 100 cells, so 96 to 400 visual tokens, and 3
to 12 small pictograms, one big one in 80 % of the scenes and a sign in 55 %: up to 14 things. Pictograms like company:
half of them are put next to another, so that questions about neighbours exist in wide pictures too.
"""

from __future__ import annotations

import numpy as np

from fsr.minivlm.scenes import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    Scene,
    SceneObject,
    Split,
    cut_noise,
    glyph,
    ground,
    held_out_color,
    held_out_quadrant,
    paste,
    sprite,
)

__all__ = ["CELL", "SIZES", "TOKEN", "draw_native", "pick_size"]

CELL = 32
TOKEN = 16  # pixels per side of a visual token: 2 x 2 patches of 8
# Cells (rows, columns); 4 visual tokens each.
SIZES = (
    [(4, 6), (6, 4), (5, 5), (4, 7), (7, 4), (5, 6), (6, 5), (4, 8), (8, 4), (6, 6), (5, 8), (8, 5), (4, 12), (12, 4)]
    + [(6, 8), (8, 6), (7, 7), (6, 10), (10, 6), (8, 8), (8, 10), (10, 8), (10, 10)]
)  # fmt: skip


def pick_size(rng: np.random.Generator, power: float = 0.0) -> tuple[int, int]:
    """(rows, columns) in cells. power 0: every size as often; 1: as often as 1 / area, so that each gets the same share
    of the work."""
    p = np.array([float(r * c) ** -power for r, c in SIZES])
    return SIZES[int(rng.choice(len(SIZES), p=p / p.sum()))]


def _cover(mask: np.ndarray) -> np.ndarray:
    """Share of each visual token that a pixel mask covers, [h, w]."""
    h, w = mask.shape[0] // TOKEN, mask.shape[1] // TOKEN
    return mask.reshape(h, TOKEN, w, TOKEN).mean((1, 3))


def draw_native(rng: np.random.Generator, size: tuple[int, int], split: Split = "train") -> Scene:
    """One random scene of `size` (rows, columns) cells. The same generator state gives the same bytes;
    `split='train'` avoids the held-out pairs."""
    rows, columns = size
    height, width = rows * CELL, columns * CELL
    middle = (width / 2, height / 2)
    background = int(rng.integers(len(BACKGROUNDS)))
    canvas = ground(rng, background, height, width)
    letter = np.zeros((height // TOKEN, width // TOKEN), np.int64)
    free = {(r, c) for r in range(rows) for c in range(columns)}
    taken: set[tuple[int, int]] = set()
    objects: list[SceneObject] = []
    cover: list[np.ndarray] = []
    kinds = rng.permutation(len(CLASSES)).tolist()
    n_small = int(rng.integers(3, 13 if rows * columns >= 30 else 10))
    repeat = int(rng.integers(1, 5))  # how often the first kind appears: 1 to 4, for counting questions
    small = ([kinds[0]] * min(repeat, n_small) + kinds[1:])[:n_small]

    def place(kind: int, cells: list[tuple[int, int]], pixels: int, big: bool) -> None:
        top, left = min(r for r, _ in cells), min(c for _, c in cells)
        color = -1
        if not big and rng.random() < 0.65:
            options = [c for c in range(6) if split == "test" or not held_out_color(kind, c)]
            color = options[int(rng.integers(len(options)))]
        edge = 3 if color >= 0 else 0
        span = CELL * (2 if big else 1)
        slack = span - pixels - 2 * edge
        x, y = (at * CELL + edge + int(rng.integers(0, slack + 1)) for at in (left, top))
        mask = np.zeros((span, span), np.float32)  # of its own cells: no object leaves them
        my, mx = y - top * CELL, x - left * CELL
        if color >= 0:
            tint = np.array(list(COLORS.values())[color], np.float32) + rng.normal(0, 9, 3).astype(np.float32)
            canvas[y - edge : y + pixels + edge, x - edge : x + pixels + edge] = tint
            mask[my - edge : my + pixels + edge, mx - edge : mx + pixels + edge] = 1
        alpha = paste(canvas, sprite(kind, pixels, int(rng.integers(-1, 2)) * 12), x, y)
        inner = mask[my : my + pixels, mx : mx + pixels]
        np.maximum(inner, alpha, out=inner)
        box = (x - edge, y - edge, x + pixels + edge, y + pixels + edge)
        objects.append(SceneObject(kind, color, box, tuple(cells), big, middle))
        share = np.zeros(letter.shape, np.float32)
        share[2 * top : 2 * top + span // TOKEN, 2 * left : 2 * left + span // TOKEN] = _cover(mask)
        cover.append(share)
        taken.update(cells)
        free.difference_update(cells)

    if rng.random() < 0.8:
        r, c = int(rng.integers(rows - 1)), int(rng.integers(columns - 1))
        place(kinds[-1], [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)], int(rng.integers(44, 61)), True)
    sign: tuple[int, int] | None = None
    sign_box: tuple[int, int, int, int] | None = None
    sign_cover = np.zeros(letter.shape, np.float32)
    if rng.random() < 0.55:
        r, c = sorted(free)[int(rng.integers(len(free)))]
        free.remove((r, c))
        sign = (int(rng.integers(8)), int(rng.integers(8)))
        tall = int(rng.integers(17, 22))
        x, y = c * CELL, r * CELL + int(rng.integers(0, CELL - tall - 5))
        board = np.full((tall + 6, CELL, 3), 244, np.float32)
        for slot in range(2):  # each letter on visual tokens of its own
            board[3 : 3 + tall, 16 * slot : 16 * slot + 15] *= 1 - 0.92 * glyph(sign[slot], tall)[..., None]
        canvas[y : y + tall + 6, x : x + CELL] = board
        mask = np.zeros((CELL, CELL), np.float32)
        mask[y - r * CELL : y - r * CELL + tall + 6] = 1
        sign_cover[2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = _cover(mask)
        slots = np.arange(width // TOKEN)[None] % 2
        letter = np.where(sign_cover > 0.3, 1 + 8 * slots + np.array(sign)[slots], 0)
        sign_box = (x, y, x + CELL, y + tall + 6)
    for kind in small:
        choices = sorted(f for f in free if split == "test" or not _forbidden(kind, f, size))
        if objects and rng.random() < 0.5:
            near = [(r, c) for r, c in choices if {(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)} & taken]
            choices = near or choices
        if choices:
            place(kind, [choices[int(rng.integers(len(choices)))]], int(rng.integers(18, 27)), False)
    image = canvas * rng.uniform(0.85, 1.12) + 5 * cut_noise(rng, 0, height, width)[..., None]
    layers = np.stack([*cover, sign_cover])
    owner = np.where(layers.max(0) > 0.14, layers.argmax(0), -1)
    owner = np.where(owner == len(objects), -2, owner).astype(np.int64)
    for i, share in enumerate(cover):  # a thin thing on the corner of four tokens owns the fullest of them
        if not (owner == i).any():
            owner.flat[int(share.argmax())] = i
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Scene(pixels, tuple(objects), background, sign, sign_box, owner, letter, CELL)


def _forbidden(kind: int, cell: tuple[int, int], size: tuple[int, int]) -> bool:
    """A cell that lies, even in part, in a quadrant that training never shows this kind in."""
    spans = [{int(2 * at >= n), int(2 * at + 1 >= n)} for at, n in zip(cell, size)]
    return any(held_out_quadrant(kind, 2 * down + right) for down in spans[0] for right in spans[1])
