"""What `pick` decides, and how images of equal N are stacked for it and taken apart again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fsr.device import to_cpu
from fsr.tokens import Geometry, Stage, VisualTokens

__all__ = ["Picks", "keep_all", "row", "signature", "stack", "with_numbers"]

NUMBERS = ("radii", "focus_wanted", "radius_cos")


@dataclass(frozen=True)
class Picks:
    """What `pick` decides for B stacked images. Rows may come in any order; their order is their rank.

    rows: long [B, K], distinct within a row.
    stage: long [B, K], values of `Stage`.
    features: [B, K, D] for methods that merge, None where rows are simply gathered.
    merged_into: long [B, N], row that absorbed token i or -1; None where nothing is merged.
    priority: float32 [B, N] or None.
    radii: float32 [B, S] or None, 1 - cos radius before each scan step, NaN where a step did not happen.
    focus_wanted: long [B] or None, K_F before the cap.
    radius_cos: float32 [B] or None, covering radius of all tokens by the kept ones (gives the certificate).
    """

    rows: Tensor
    stage: Tensor
    features: Tensor | None = None
    merged_into: Tensor | None = None
    priority: Tensor | None = None
    radii: Tensor | None = None
    focus_wanted: Tensor | None = None
    radius_cos: Tensor | None = None


def signature(tokens: VisualTokens) -> tuple[Any, ...]:
    """Only images that carry the same signals in the same shapes are stacked, so no image sees another's lack."""
    f, n = tokens.features, tokens.count
    scores = (tokens.saliency, tokens.relevance, tokens.geometry, tokens.saliency_span, tokens.relevance_span)
    shapes: list[Any] = []
    for name, v in sorted({"encoder": tokens.encoder, **tokens.extra}.items()):
        if v is not None:  # rows are cut to the group's, anything else stays as it is
            shapes.append((name, v.dtype, tuple(v.shape[1:] if v.dim() and v.shape[0] == n else v.shape)))
    return (f.shape[-1], f.dtype, f.device, *(s is None for s in scores), tuple(shapes))


def stack(images: Sequence[VisualTokens]) -> VisualTokens:
    first = images[0]

    def together(values: Sequence[Tensor]) -> Tensor:
        return values[0][None] if len(values) == 1 else torch.stack(list(values))

    def stacked(values: Iterable[Tensor | None]) -> Tensor | None:
        present = [v for v in values if v is not None]
        return together(present) if present else None

    where = [t.geometry for t in images if t.geometry is not None]
    geometry = None
    if where:
        boxes, tile, frame = ([getattr(g, name) for g in where] for name in ("boxes", "tile", "frame"))
        geometry = Geometry(torch.stack(boxes), torch.stack(tile), torch.stack(frame))

    return VisualTokens(
        features=together([t.features for t in images]),
        saliency=stacked(t.saliency for t in images),
        relevance=stacked(t.relevance for t in images),
        geometry=geometry,
        encoder=stacked(t.encoder for t in images),
        extra={k: together([t.extra[k] for t in images]) for k in first.extra},
        saliency_span=stacked(t.saliency_span for t in images),
        relevance_span=stacked(t.relevance_span for t in images),
    )


def keep_all(batch: VisualTokens) -> Picks:
    b, n, _ = batch.features.shape
    rows = torch.arange(n, device=batch.features.device).expand(b, n)
    return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.WHOLE)))


def row(picks: Picks, b: int) -> Picks:
    values: dict[str, Any] = {}
    for f in fields(picks):
        value = getattr(picks, f.name)
        values[f.name] = None if value is None else value[b]
    return replace(picks, **values)


def with_numbers(picked: Sequence[Picks]) -> list[Picks]:
    """The same with what people read, `NUMBERS`, on the CPU: one transfer for all."""
    there = [(i, name) for i, p in enumerate(picked) for name in NUMBERS if getattr(p, name) is not None]
    told: list[dict[str, Any]] = [{} for _ in picked]
    for (i, name), value in zip(there, to_cpu([getattr(picked[i], name) for i, name in there])):
        told[i][name] = value
    return [replace(p, **values) for p, values in zip(picked, told)]
