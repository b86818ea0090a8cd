"""The shared vocabulary: `VisualTokens` goes into a method, `Selection` comes out.

Methods know these two and no model; adapters know these two and no method; pictures, profilers and tests need
nothing else.
Letters: N visual tokens of one image, K of them kept, D feature width, B images of equal N stacked for speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

__all__ = ["CenterCrop", "Certificate", "Geometry", "Selection", "Stage", "VisualTokens"]


class Stage(IntEnum):
    """Why a token was kept. Peers use `FOCUS` for scored picks, `SCAN` for diverse or spatial ones, `MERGED` for
    tokens made of others."""

    FOCUS = 0
    SCAN = 1
    MERGED = 2
    WHOLE = 3  # nothing was pruned


@dataclass(frozen=True)
class CenterCrop:
    """How a processor brings a picture to one size: it scales it, and cuts out the middle or pads to a square.

    shortest: length of the shorter side after scaling; None: `scaled`, whatever the proportions; both None: not scaled.
    scaled: (height, width) after scaling. cut: (height, width) of the middle that stays; black where it reaches beyond.
    square: the picture is padded to a square first, and none of it is cut.
    """

    shortest: int | None = None
    scaled: tuple[int, int] | None = None
    cut: tuple[int, int] | None = None
    square: bool = False

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of what the model saw, as shares of a picture of this size; beyond [0, 1] where padded."""
        if self.square:
            x, y = ((max(width, height) / side - 1) / 2 for side in (width, height))
            return -x, -y, 1 + x, 1 + y
        if self.cut is None:
            return 0.0, 0.0, 1.0, 1.0
        if self.shortest is not None:
            factor = self.shortest / min(width, height)
            width, height = max(1, int(factor * width + 1e-6)), max(1, int(factor * height + 1e-6))
        elif self.scaled is not None:
            height, width = self.scaled
        left, top = (width - self.cut[1]) // 2, (height - self.cut[0]) // 2
        return left / width, top / height, (left + self.cut[1]) / width, (top + self.cut[0]) / height


@dataclass(frozen=True)
class Geometry:
    """Where each token lies in the picture that reached the model, and with `crop` in the picture the user gave.

    boxes: float [N, 4], (x0, y0, x1, y1) as shares of that picture's width and height, in [0, 1]; NaN for structural
    tokens.
    tile: long [N], index of the crop that the token comes from (0 = the whole image or the only one), -1 for
    structural tokens.
    frame: long [N], index of the video frame (0 for images).
    grid: rows and columns when the tokens are one regular raster, else None.
    crop: what the processor cut off before; None: nothing, or no processor is known.
    """

    boxes: Tensor
    tile: Tensor
    frame: Tensor
    grid: tuple[int, int] | None = None
    crop: CenterCrop | None = None

    def boxes_in(self, width: int, height: int) -> Tensor:
        """`boxes` as shares of the user's picture of this size: float [N, 4], beyond [0, 1] where it was padded."""
        if self.crop is None:
            return self.boxes
        x0, y0, x1, y1 = self.crop.window(width, height)
        start = self.boxes.new_tensor([x0, y0, x0, y0])
        return start + self.boxes * self.boxes.new_tensor([x1 - x0, y1 - y0, x1 - x0, y1 - y0])

    @staticmethod
    def raster(rows: int, cols: int, device: torch.device | str = "cpu") -> Geometry:
        """One regular grid over the whole image, row by row."""
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        x, y = x.flatten().float(), y.flatten().float()
        boxes = torch.stack([x / cols, y / rows, (x + 1) / cols, (y + 1) / rows], dim=-1)
        zero = torch.zeros(rows * cols, dtype=torch.long)
        return Geometry(boxes.to(device), zero.to(device), zero.clone().to(device), (rows, cols))

    def take(self, rows: Tensor) -> Geometry:
        """The geometry of some rows (the grid is lost)."""
        rows = rows.to(self.boxes.device)
        return Geometry(self.boxes[rows], self.tile[rows], self.frame[rows], None, self.crop)


@dataclass(frozen=True)
class VisualTokens:
    """All that a method may know about one image (or one video), or about B images of equal N stacked in front.

    features: [N, D] (or [B, N, D]) after the projector: what the language model would see.
    saliency: float32 [N] or None; attention that [CLS] pays (or that is received on average) in one vision layer.
    relevance: float32 [N] or None; similarity to the question with its sign already applied: higher means more
    relevant.
    geometry: where the tokens lie (tensors with B in front, no grid, once stacked); None for bare tensors.
    structural: bool [N] or None; rows that are no patch (newlines): never scored, dropped as soon as anything is
    pruned.
    encoder: [N, C] vision-tower features before the projector, or None.
    extra: further signals by name that single methods ask for in `Method.needs` (for example `keys`,
    `shallow_saliency`).
    saliency_span, relevance_span: float32 [2] (lowest, highest) over the whole image, set when these tokens are one
        tile of it, so that normalisation stays per image.
    """

    features: Tensor
    saliency: Tensor | None = None
    relevance: Tensor | None = None
    geometry: Geometry | None = None
    structural: Tensor | None = None
    encoder: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    saliency_span: Tensor | None = None
    relevance_span: Tensor | None = None

    @property
    def count(self) -> int:
        """N."""
        return self.features.shape[-2]

    def take(self, rows: Tensor) -> VisualTokens:
        """The tokens at `rows` (long [M]) of one unstacked image; scores keep the span of the whole image."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows.to(value.device)]

        n, whole = self.count, self.with_spans()
        return VisualTokens(
            features=self.features[rows.to(self.features.device)],
            saliency=pick(self.saliency),
            relevance=pick(self.relevance),
            geometry=None if self.geometry is None else self.geometry.take(rows),
            structural=pick(self.structural),
            encoder=pick(self.encoder),
            extra={k: (v[rows.to(v.device)] if v.dim() and v.shape[0] == n else v) for k, v in self.extra.items()},
            saliency_span=whole.saliency_span,
            relevance_span=whole.relevance_span,
        )

    def with_spans(self) -> VisualTokens:
        """The same, and the spans of its scores where they are not set yet. No synchronisation with the device."""

        def span(value: Tensor | None, known: Tensor | None) -> Tensor | None:
            if value is None or known is not None:
                return known
            if self.structural is None:
                return torch.stack(torch.aminmax(value.float()))
            mask = self.structural.to(value.device, non_blocking=True)
            lowest = value.float().masked_fill(mask, torch.inf).amin()
            return torch.stack((lowest, value.float().masked_fill(mask, -torch.inf).amax()))

        return replace(
            self,
            saliency_span=span(self.saliency, self.saliency_span),
            relevance_span=span(self.relevance, self.relevance_span),
        )


@dataclass(frozen=True)
class Certificate:
    """How well the kept tokens cover the discarded ones (k-centre), with the bound that is true.

    The greedy scan is farthest-point sampling. Its factor 2 holds for the chordal distance |u - v| of unit vectors,
    which is a metric; 1 - cos = chord^2 / 2 is none, so there the factor is 4 (the paper's Eq. 7 states 2).

    radius_cos: largest 1 - cos from a token to its nearest kept token.
    radius_chord: the same, chordal: sqrt(2 * radius_cos).
    optimum_at_least: lower bound on the best possible chordal radius for the same fixed Focus set and number of
    scanned tokens
        (half of radius_chord).
    """

    radius_cos: float
    radius_chord: float
    optimum_at_least: float


@dataclass(frozen=True)
class Selection:
    """What one method kept of one image, and why. All tensors of length K are in raster order of `rows`.

    rows: long [K], strictly increasing row numbers into the N original tokens.
    features: [K, D], in the dtype of the input; equal to the original rows except where tokens were merged.
    stage: long [K], values of `Stage`.
    total: N.
    priority, saliency, relevance: float32 [N] or None; the last two as given to the method (not normalised).
    order: long [K], the rank at which each kept row was chosen (0 = first), counted anew in each tile or frame that
        has a budget of its own.
    merged_into: long [N]; the original row whose token absorbed row i, -1 where it was kept or dropped.
    radii: float32 [K_S] or None, on the CPU; falling 1 - cos radius before each scan step.
    focus_wanted: K_F before it was capped (distinct Focus: K_F itself; None where the method has no Focus).
    certificate: see `Certificate`; None where the method does not compute one.
    geometry: of all N tokens.
    method: name of the method, `notes`: anything worth telling (a relevance that was missing, an image left whole).
    """

    rows: Tensor
    features: Tensor
    stage: Tensor
    total: int
    order: Tensor
    merged_into: Tensor
    priority: Tensor | None = None
    saliency: Tensor | None = None
    relevance: Tensor | None = None
    radii: Tensor | None = None
    focus_wanted: int | None = None
    certificate: Certificate | None = None
    geometry: Geometry | None = None
    method: str = ""
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """K."""
        return self.rows.shape[0]

    @property
    def n_focus(self) -> int:
        """K_F: kept tokens of the Focus stage."""
        return int((self.stage == Stage.FOCUS).sum())

    @property
    def n_scan(self) -> int:
        """K_S: kept tokens of the Scan stage."""
        return int((self.stage == Stage.SCAN).sum())

    def to_json(self) -> dict[str, Any]:
        """Everything but the features as plain lists and numbers."""

        def plain(value: Tensor | None) -> list[Any] | None:
            return None if value is None else value.detach().cpu().tolist()

        return {
            "method": self.method,
            "total": self.total,
            "keep": self.kept,
            "focus": self.n_focus,
            "scan": self.n_scan,
            "focus_wanted": self.focus_wanted,
            "kept_rows": plain(self.rows),
            "stage": [Stage(s).name.lower() for s in self.stage.tolist()],
            "order": plain(self.order),
            "merged_into": plain(self.merged_into),
            "priority": plain(self.priority),
            "saliency": plain(self.saliency),
            "relevance": plain(self.relevance),
            "radii": plain(self.radii),
            "certificate": None if self.certificate is None else vars(self.certificate),
            "notes": list(self.notes),
        }
