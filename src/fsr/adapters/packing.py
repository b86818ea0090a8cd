"""Scores through the model's own packing code: whatever it does to features is done to one channel per signal.

Families cut a picture into tiles, crop padding, pool, shuffle pixels, add newlines. None of that is repeated here:
position, saliency and every other signal are stacked as channels [T, P, C] (T tiles of P patches) and pushed through
the very functions the features went through.
What comes out has one row per token, and says where each token comes from and which rows are no patch at all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Adapter, Modality, TowerStates, Units
from fsr.adapters.containers import entries, split_rows
from fsr.errors import FeatureError
from fsr.tokens import Geometry, VisualTokens

__all__ = ["Channels", "Layout", "PackedAdapter", "Window", "centres", "placeholder_runs"]

Window = tuple[float, float, float, float]
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
PATCH, Y, X, TILE, FRAME = range(5)  # the first channels of every stack


@dataclass(frozen=True)
class Layout:
    """Where the patches of T tiles lie.

    y, x: float32 [T, P], centres as shares of the tile's plane (the canvas that its tiles fill together), in [0, 1].
    tile, frame: long [T] or [T, P]; tile 0 is a view of the whole picture, the others are crops.
    grids: per unit (rows, columns) of the canvas where tokens may mix tiles (tile numbers are then read off positions),
        else None.
    windows: per unit (y0, x0, y1, x1) of the picture on the canvas of its crops, else None (the picture fills it).
    """

    y: Tensor
    x: Tensor
    tile: Tensor
    frame: Tensor
    grids: Sequence[tuple[int, int] | None] | None = None
    windows: Sequence[Window] | None = None


@dataclass(frozen=True)
class Channels:
    """Signals of T tiles as `value` float32 [T, P, C]; `spans` says which channels hold which signal."""

    value: Tensor
    spans: Mapping[str, slice]

    @staticmethod
    def stack(layout: Layout, signals: Mapping[str, Tensor]) -> Channels:
        """signals: by name, [T, P] or [T, P, c]."""
        shape = layout.y.shape

        def wide(value: Tensor) -> Tensor:
            return (value[:, None] if value.dim() == 1 else value).expand(shape).float()

        parts = [
            torch.stack([torch.ones_like(layout.y), layout.y, layout.x, wide(layout.tile), wide(layout.frame)], dim=-1)
        ]
        spans, at = {}, FRAME + 1
        for name, signal in signals.items():
            flat = signal[..., None] if signal.dim() == 2 else signal
            if flat.shape[:2] != shape:
                raise FeatureError(
                    f"{name} covers {tuple(flat.shape[:2])} patches and the pictures have {tuple(shape)}: "
                    "pixels and sizes do not belong together; use the processor of this model."
                )
            spans[name] = slice(at, at + flat.shape[-1])
            at += flat.shape[-1]
            parts.append(flat.float())
        return Channels(torch.cat([p.to(layout.y.device) for p in parts], dim=-1), spans)

    @property
    def newline(self) -> Tensor:
        """[C]: what stands in for the model's newline vector, a row that is no patch."""
        row = torch.full_like(self.value[0, 0], torch.nan)
        row[PATCH] = 0
        return row

    def signal(self, packed: Tensor, name: str) -> Tensor:
        """One signal of a packed unit [N, m, C]: [N] or [N, c], the mean over the m patches of each token."""
        part = packed[..., self.spans[name]].mean(1)
        return part.squeeze(-1) if part.shape[-1] == 1 and name.endswith("saliency") else part


class PackedAdapter(Adapter):
    """A family that packs features; it says where patches lie (`layout`) and calls the model's packing code
    (`pack`)."""

    @abstractmethod
    def layout(self, modality: Modality, output: Any, inputs: Mapping[str, Any]) -> Layout:
        """Where the patches of every tile lie, in the order in which the tower saw them."""

    @abstractmethod
    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The model's own packing of `channels.value`, per picture: [N, C], or [N, m, C] where m patches make one
        token."""

    def hidden(self, output: Any, layer: int) -> Tensor:
        """A hidden state of the tower, [T, P, C] without [CLS]."""
        state = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return state[:, int(self.has_cls) :].detach()

    @property
    def encoder_layer(self) -> int:
        """The hidden state that goes into the projector."""
        return -1

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Features, signals and geometry of every picture, row by row."""
        layout = self.layout(modality, output, inputs)
        signals = {} if tower.saliency is None else {"saliency": tower.saliency}
        signals.update(tower.extra)
        if "encoder" in tower.signals:
            signals["encoder"] = self.hidden(output, self.encoder_layer)
        if "relevance" in tower.signals:
            signals["patches"] = tower.read_patches(self.hidden(output, tower.patch_layer))
        channels = Channels.stack(layout, signals)
        packed = [p[:, None] if p.dim() == 2 else p for p in self.pack(modality, channels, inputs)]
        counts = [len(p) for p in packed]
        if (have := sum(len(e.flatten(0, -2)) for e in entries(output.pooler_output))) != sum(counts):
            raise FeatureError(
                f"the model made {have} {modality} features and its packing code {sum(counts)} from the sizes given: "
                "pixels, sizes and prompt must come from one processor call."
            )
        features = split_rows(output.pooler_output, counts)
        tokens, patches = [], []
        for i, (unit, p) in enumerate(zip(features, packed)):
            grid = None if layout.grids is None else layout.grids[i]
            geometry = read_geometry(p, grid, WHOLE if layout.windows is None else layout.windows[i])
            structural = geometry.tile < 0
            read = {name: channels.signal(p, name) for name in channels.spans if name != "patches"}
            tokens.append(
                VisualTokens(
                    features=unit,
                    saliency=read.pop("saliency", None),
                    geometry=geometry,
                    structural=structural if bool(structural.any()) else None,
                    encoder=read.pop("encoder", None),
                    extra=read,
                )
            )
            if "patches" in channels.spans:
                states = p[..., channels.spans["patches"]]
                patches.append(states.squeeze(1) if states.shape[1] == 1 else states)
        return Units(tokens, patches if "patches" in channels.spans else None)


def read_geometry(packed: Tensor, grid: tuple[int, int] | None = None, window: Window = WHOLE) -> Geometry:
    """Boxes, tiles and frames of one unit from its packed channels [N, m, C].

    A token's box is as wide as the distance to its neighbours: pooling and resizing move centres, and spacing with
    them.
    """
    real = packed[..., PATCH].mean(1) > 0.5
    y, x = packed[..., Y].mean(1), packed[..., X].mean(1)
    tile = packed[..., TILE].mean(1).nan_to_num(-1).round().long()
    frame = packed[..., FRAME].mean(1).nan_to_num(0).round().long()
    crop = tile > 0
    boxes = packed.new_full((len(packed), 4), torch.nan)
    for plane, (y0, x0, y1, x1) in ((~crop & real, WHOLE), (crop & real, window)):
        if not bool(plane.any()):
            continue
        py, px = y[plane], x[plane]
        dy, dx = (_spacing(v, frame[plane]) / 2 for v in (py, px))
        ends = torch.stack([px - dx, py - dy, px + dx, py + dy], dim=-1)
        low, size = ends.new_tensor([x0, y0, x0, y0]), ends.new_tensor([x1 - x0, y1 - y0] * 2)
        boxes[plane] = ((ends - low) / size).clamp(0, 1)
    if grid is not None:
        rows, cols = grid
        at = (y * rows).floor().clamp(0, rows - 1) * cols + (x * cols).floor().clamp(0, cols - 1)
        tile = torch.where(crop & real, 1 + at.nan_to_num(0).long(), tile)
    tile = torch.where(real, tile, -1)
    # A structural row belongs to the frame of the patch before it.
    before = torch.where(real, torch.arange(len(real), device=real.device), -1).cummax(0).values.clamp_min(0)
    return Geometry(boxes, tile, frame[before], _raster(y, tile, frame))


def centres(rows: int, cols: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres of a raster of patches as shares of its height and width: y, x float32 [rows * cols]."""
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) / rows
    x = (torch.arange(cols, device=device, dtype=torch.float32) + 0.5) / cols
    return y.repeat_interleave(cols), x.repeat(rows)


def placeholder_runs(ids: Tensor, token: int) -> list[tuple[int, int, int]]:
    """Unbroken runs of a placeholder in scatter order: (row, first column, column after the last)."""
    runs = []
    for row, hit in enumerate((ids == token).tolist()):
        start = None
        for column, here in enumerate([*hit, False]):
            if here and start is None:
                start = column
            elif not here and start is not None:
                runs.append((row, start, column))
                start = None
    return runs


def _spacing(v: Tensor, frame: Tensor) -> float:
    """Distance between neighbouring centres: the largest step forward in raster order; 1 (the whole plane) if there is
    none."""
    step = torch.where(frame[1:] == frame[:-1], v[1:] - v[:-1], 0.0)
    best = float(step.max()) if len(step) else 0.0
    return best if best > 1e-5 else 1.0


def _raster(y: Tensor, tile: Tensor, frame: Tensor) -> tuple[int, int] | None:
    """(rows, columns) if all tokens are one regular raster."""
    if bool((tile != tile[0]).any()) or bool((frame != frame[0]).any()) or int(tile[0]) < 0:
        return None
    rows = 1 + int(((y[1:] - y[:-1]) > 1e-5).sum())
    return (rows, len(y) // rows) if len(y) % rows == 0 else None
