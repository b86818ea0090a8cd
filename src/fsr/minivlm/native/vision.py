"""Stage 1 of `fsr train --model mini-qwen3`: the vision tower, read out densely from what the language model sees.

Linear read-outs of the merged tokens (pictogram, letter, row, column, neighbours, number of equals) and of the two
DeepStack levels (card colour; ground) are trained with the labels that the drawer knows, and thrown away afterwards.
The levels carry what the last level does not have to: a language model that lost them could not name colours.
Rows and columns are twelfths of the picture's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from fsr.minivlm.native.build import MERGE, PATCH
from fsr.minivlm.native.scenes import draw_native, pick_size
from fsr.minivlm.scenes import Scene
from fsr.minivlm.train_vision import MEAN, STD, ReadOuts, labels_at

__all__ = [
    "LEVELS",
    "NativeBatch",
    "NativeReadOuts",
    "levels_of",
    "merge_labels",
    "patches_of",
    "tower",
    "vision_batch",
    "vision_loss",
]

BINS = 12
# What each level tells: the last one, then DeepStack's.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("kind", "letter", "row", "column", "count", "neighbor0", "neighbor1", "neighbor2", "neighbor3"),
    ("color",),
    ("ground",),
)
WEIGHTS = {"kind": 1.0, "color": 0.7, "letter": 1.0, "ground": 0.3, "row": 0.3, "column": 0.3, "count": 0.8}
RARE = {"count": 0.4, **{f"neighbor{d}": 0.2 for d in range(4)}}  # weight of the first label, which most tokens have


@dataclass(frozen=True)
class NativeBatch:
    """B scenes of one size. patches: [B, N, 4, 3 * 8 * 8] normalised pixels, merge unit by merge unit; grid: (rows,
    columns) of visual tokens, N of them; labels: name -> [B, N] long, -100 where void."""

    patches: Tensor
    grid: tuple[int, int]
    labels: dict[str, Tensor]


class NativeReadOuts(nn.Module):
    """Linear heads, level by level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        names = [name for level in LEVELS for name in level]
        self.heads = nn.ModuleDict({k: nn.Linear(width, ReadOuts.sizes[k]) for k in names})
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in LEVELS])


def patches_of(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to [B, N, 4, 3 * 8 * 8], normalised as by the processor, in the processor's order."""
    b, height, width, _ = images.shape
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    x = images.reshape(b, rows, MERGE, PATCH, columns, MERGE, PATCH, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    x = (x.astype(np.float32) / 255 - mean[:, None, None]) / std[:, None, None]
    return torch.from_numpy(x.reshape(b, rows * columns, MERGE * MERGE, 3 * PATCH * PATCH))


def merge_labels(scene: Scene) -> dict[str, np.ndarray]:
    """What each of the N visual tokens shows, by name of read-out, [N]: see `fsr.minivlm.train_vision.labels_at`."""
    h, w = scene.owner.shape
    row, column = np.divmod(np.arange(h * w), w)
    return labels_at(scene, *(((at + 0.5) / n * BINS).astype(np.int64) for at, n in ((row, h), (column, w))))


def stacked(labels: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """The labels of B scenes, name -> [B, N] long."""
    return {k: torch.from_numpy(np.stack([x[k] for x in labels])).long() for k in labels[0]}


def vision_batch(rng: np.random.Generator, size: int) -> NativeBatch:
    """Fresh training scenes, all of one random size."""
    cells = pick_size(rng, 0.5)
    scenes = [draw_native(rng, cells, "train") for _ in range(size)]
    h, w = scenes[0].owner.shape
    return NativeBatch(
        patches_of(np.stack([s.image for s in scenes])), (h, w), stacked([merge_labels(s) for s in scenes])
    )


@lru_cache(maxsize=64)
def _places(grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor, Tensor]:
    thw = torch.tensor([[1, grid[0] * MERGE, grid[1] * MERGE]])
    index, weight = get_vision_interpolation_indices_and_weights(
        thw, num_grid_per_side=side, mode="bilinear", align_corners=True, spatial_merge_size=MERGE
    )
    return index, weight, get_vision_position_ids(thw, MERGE)


def tower(visual: nn.Module, patches: Tensor, grid: tuple[int, int], rows: Tensor | None = None) -> list[Tensor]:
    """The states that the mergers read: after the last block, then after DeepStack's, [B, n, 4, D] each.

    rows: long [B, n], only these visual tokens go through the tower (a shortcut of training); None is all of them.
    """
    v: Any = visual
    b, n = patches.shape[:2]
    index, weight, at = (x.to(patches.device).unflatten(0, (n, MERGE**2)) for x in _places(grid, v.num_grid_per_side))
    code = (v.pos_embed(index) * weight[..., None]).sum(-2)  # [N, 4, D]
    if rows is None:
        code, at = code.expand(b, -1, -1, -1), at.expand(b, -1, -1, -1)
    else:
        n = rows.shape[1]
        patches = patches.gather(1, rows[..., None, None].expand(-1, -1, *patches.shape[2:]))
        code, at = code[rows], at[rows]
    filters = v.patch_embed.proj.weight.sum(2).flatten(1)  # two equal frames
    h = F.linear(patches, filters, v.patch_embed.proj.bias) + code
    h = h.flatten(0, 2)
    rotary = v.rotary_pos_emb(h, at.flatten(0, 2))
    lengths = torch.arange(b + 1, device=h.device, dtype=torch.int32) * (n * MERGE**2)
    deep = []
    for i, block in enumerate(v.blocks):
        h = block(h, cu_seqlens=lengths, position_embeddings=rotary)
        if i in v.deepstack_visual_indexes:
            deep.append(h)
    return [x.view(b, n, MERGE**2, -1) for x in (h, *deep)]


def levels_of(visual: nn.Module, states: list[Tensor]) -> list[Tensor]:
    """What the language model gets: merged tokens and DeepStack's, [B, n, D'] each."""
    v: Any = visual
    mergers = [v.merger, *v.deepstack_merger_list]
    return [m(x.flatten(0, 2)).view(*x.shape[:2], -1) for m, x in zip(mergers, states)]


def choose(shown: Tensor, tokens: int) -> Tensor:
    """Rows [B, tokens] in order: those with something on them (bool [B, N]) first, the others at random."""
    rank = torch.rand(shown.shape, device=shown.device) + shown.float() * 0.8
    return rank.topk(min(tokens, shown.shape[1]), dim=1).indices.sort(dim=1).values


def vision_loss(
    visual: nn.Module, heads: NativeReadOuts, batch: NativeBatch, tokens: int | None
) -> tuple[Tensor, dict[str, float]]:
    """The summed loss and figures to log. tokens: as for `choose`, or None for all."""
    labels, rows = batch.labels, None
    if tokens is not None:
        rows = choose(labels["kind"] + labels["letter"] > 0, tokens)
        labels = {k: v.gather(1, rows) for k, v in labels.items()}
    levels = levels_of(visual, tower(visual, batch.patches, batch.grid, rows))
    parts, report = {}, {}
    for norm, level, names in zip(heads.norms, levels, LEVELS):
        read = norm(level)
        for name in names:
            logits = heads.heads[name](read).flatten(0, 1).float()
            label = labels[name].flatten()
            weight = logits.new_ones(logits.shape[-1])
            weight[0] = RARE.get(name, 1.0)
            parts[name] = WEIGHTS.get(name, 0.5) * F.cross_entropy(logits, label, weight, ignore_index=-100)
            if name.startswith("neighbor"):
                those = label > 0  # there is one
            else:
                those = label >= (1 if name in ("kind", "color", "letter") else 0)
            right = (logits.detach().argmax(-1) == label)[those]
            report[name] = float(right.float().mean()) if len(right) else float("nan")
    total = torch.stack([v for v in parts.values() if not v.isnan()]).sum()
    return total, report
