"""What a pruning method is: a frozen dataclass of options and one function on stacked tensors, `pick`.

The base class does everything that all methods share: the meaning of the budget, scopes (per image, tile or frame),
structural rows, checks of the input, stacking images of equal N, raster order. A method is one file with one `pick`.
Third parties register under the entry-point group `fsr.methods` (name = class).
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fsr.errors import BudgetError, FeatureError, RelevanceError, UsageError
from fsr.tokens import Certificate, Geometry, Selection, Stage, VisualTokens

__all__ = ["Method", "Picks", "Signal", "available", "get", "register"]

# What each means, its shape and its layer: docs/methods.md, "Signals".
Signal = Literal[
    "saliency",
    "relevance",
    "encoder",
    "keys",
    "shallow_saliency",
    "first_saliency",
    "last_keys",
    "last_saliency",
]
Scope = Literal["image", "tile", "frame"]


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


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods that prune before the language model.

    Args:
        keep: tokens to keep per image (int >= 1) or share of them (float in (0, 1]); the only meaning of budget here.
        per: what `keep` counts in: the whole image or clip, each tile of a tiled image, each frame of a video.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    licence_note: ClassVar[str] = ""
    needs: ClassVar[frozenset[Signal]] = frozenset()
    where: ClassVar[str] = "before the language model"

    keep: int | float = 64
    per: Scope = "image"

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if self.per not in ("image", "tile", "frame"):
            raise UsageError(f"per={self.per!r} is unknown: use 'image', 'tile' or 'frame'.")

    @abstractmethod
    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """Choose exactly k of N rows for each of B stacked images.

        All tensors have B in front: features [B, N, D], scores [B, N], geometry.boxes [B, N, 4] (no grid); 1 <= k < N.
        """

    def __or__(self, other: Any) -> Any:
        """`FSR(keep=128) | FastV(layer=16, keep=32)`: this method before the language model, then `other` inside it."""
        from fsr.methods.inside.chain import join

        return join(self, other)

    def signals(self) -> frozenset[Signal]:
        """Signals that this configuration reads; options may need fewer than the class declares."""
        return self.needs

    def need(self, tokens: VisualTokens, signal: Signal) -> Tensor:
        """One signal of `tokens` by name.

        Raises:
            RelevanceError: it is missing.
        """
        own = {"saliency": tokens.saliency, "relevance": tokens.relevance, "encoder": tokens.encoder}
        value = own[signal] if signal in own else tokens.extra.get(signal)
        if value is None:
            hint = (
                "give a paired text tower, or set relevance='none' where the method has that option"
                if signal == "relevance"
                else "this model's adapter does not provide it"
            )
            raise RelevanceError(f"{self.name} needs {signal}, which is missing: {hint}.")
        return value

    def budget(self, total: int) -> int:
        """K for an image (or tile, or frame) of `total` tokens: never more than `total`, never fewer than one."""
        k = self.keep if isinstance(self.keep, numbers.Integral) else round(float(self.keep) * total)
        return max(1, min(int(k), total))

    def budget_of(self, tokens: VisualTokens) -> int:
        """K for one whole image, summed over its tiles or frames where the budget is counted by those."""
        return sum(self.budget(len(rows)) for rows in self._groups(tokens))

    def __call__(self, images: Sequence[VisualTokens]) -> list[Selection]:
        """Select from each image. Results do not depend on which other images are in the list.

        Raises:
            FeatureError: NaN or infinite features or scores, or scores of the wrong length.
            RelevanceError: a signal that this method needs is missing.
        """
        for tokens in images:
            self._check(tokens)
        jobs: list[tuple[int, Tensor, int]] = []  # image, rows of one group, k
        whole: set[int] = set()
        for i, tokens in enumerate(images):
            groups = self._groups(tokens)
            if self.budget_of(tokens) >= tokens.count:
                whole.add(i)
                continue
            for rows in groups:
                patches = rows if tokens.structural is None else rows[~tokens.structural[rows].to(rows.device)]
                k = self.budget(len(rows))
                if len(patches):
                    jobs.append((i, patches, min(k, len(patches))))
        parts: dict[int, list[tuple[Tensor, Picks]]] = {i: [] for i in range(len(images))}
        stacks: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}
        for i, rows, k in jobs:
            stacks.setdefault((len(rows), k, *_signature(images[i])), []).append((i, rows))
        for (n, k, *_), members in stacks.items():
            batch = _stack([images[i].take(rows) for i, rows in members])
            picks = self.pick(batch, k) if k < n else _keep_all(batch)
            for b, (i, rows) in enumerate(members):
                parts[i].append((rows, _row(picks, b)))
        return [self._whole(tokens) if i in whole else self._merge(tokens, parts[i]) for i, tokens in enumerate(images)]

    # ------------------------------------------------------------------------------------------------------------------

    def _check(self, tokens: VisualTokens) -> None:
        n = tokens.count
        if tokens.features.dim() != 2 or n == 0:
            raise FeatureError(f"features must be [N, D] with N >= 1, not {tuple(tokens.features.shape)}.")
        if not _finite(tokens.features):
            raise FeatureError(
                "visual features hold NaN or infinity: check the image and the dtype of the vision tower."
            )
        for name, value in (("saliency", tokens.saliency), ("relevance", tokens.relevance)):
            if value is None:
                continue
            if value.shape != (n,):
                raise FeatureError(f"{name} must have shape [{n}], not {tuple(value.shape)}.")
            patches = value if tokens.structural is None else value[~tokens.structural.to(value.device)]
            if not bool(torch.isfinite(patches).all()):
                raise FeatureError(f"{name} holds NaN or infinity: check the vision and text towers.")
        extras = {name: tokens.extra[name] for name in self.signals() if name in tokens.extra}
        if "encoder" in self.signals() and tokens.encoder is not None:
            extras["encoder"] = tokens.encoder
        for name, extra in extras.items():
            if extra.dim() == 0 or extra.shape[0] != n:
                raise FeatureError(f"{name} must have {n} rows, not shape {tuple(extra.shape)}.")
            patches = extra if tokens.structural is None else extra[~tokens.structural.to(extra.device)]
            if not bool(torch.isfinite(patches).all()):
                raise FeatureError(f"{name} holds NaN or infinity: check the vision tower.")
        for signal in sorted(self.signals()):
            self.need(tokens, signal)

    def _groups(self, tokens: VisualTokens) -> list[Tensor]:
        everything = torch.arange(tokens.count, device=tokens.features.device)
        if self.per == "image" or tokens.geometry is None:
            return [everything]
        label = (tokens.geometry.tile if self.per == "tile" else tokens.geometry.frame).to(everything.device)
        # A structural row belongs to the group of the patch before it.
        if tokens.structural is not None:
            patch = torch.where(tokens.structural.to(everything.device), -1, everything).cummax(0).values.clamp_min(0)
            label = label[patch]
        return [everything[label == g] for g in label.unique()]

    def _whole(self, tokens: VisualTokens) -> Selection:
        device, n = tokens.features.device, tokens.count
        rows = torch.arange(n, device=device)
        return Selection(
            rows=rows,
            features=tokens.features,
            stage=torch.full_like(rows, int(Stage.WHOLE)),
            total=n,
            order=rows,
            merged_into=torch.full_like(rows, -1),
            saliency=tokens.saliency,
            relevance=tokens.relevance,
            geometry=tokens.geometry,
            method=self.name,
            notes=(f"nothing pruned: the image has {n} tokens and the budget is {self.keep} per {self.per}",),
        )

    def _merge(self, tokens: VisualTokens, parts: list[tuple[Tensor, Picks]]) -> Selection:
        device, n = tokens.features.device, tokens.count
        rows = torch.cat([original[p.rows] for original, p in parts])
        stage = torch.cat([p.stage for _, p in parts])
        rank = torch.cat([torch.arange(len(p.rows), device=device) for _, p in parts])
        feats = torch.cat(
            [tokens.features[original[p.rows]] if p.features is None else p.features for original, p in parts]
        )
        rows, by_row = rows.sort()
        merged = torch.full((n,), -1, dtype=torch.long, device=device)
        priority = None if parts[0][1].priority is None else torch.zeros(n, device=device)
        for original, p in parts:
            if p.merged_into is not None:
                target = torch.where(p.merged_into >= 0, original[p.merged_into.clamp_min(0)], -1)
                merged[original] = target
            if p.priority is not None and priority is not None:
                priority[original] = p.priority.float()
        one = parts[0][1]
        radius = None
        if one.radius_cos is not None:
            radius = max(float(p.radius_cos) for _, p in parts if p.radius_cos is not None)
        wanted = None
        if one.focus_wanted is not None:
            wanted = sum(int(p.focus_wanted) for _, p in parts if p.focus_wanted is not None)
        radii = None
        if one.radii is not None and len(parts) == 1:
            radii = one.radii[~one.radii.isnan()]
        return Selection(
            rows=rows,
            features=feats[by_row].to(tokens.features.dtype),
            stage=stage[by_row],
            total=n,
            order=rank[by_row],
            merged_into=merged,
            priority=priority,
            saliency=tokens.saliency,
            relevance=tokens.relevance,
            radii=radii,
            focus_wanted=wanted,
            certificate=None if radius is None else certify(radius),
            geometry=tokens.geometry,
            method=self.name,
        )


def check_keep(keep: int | float) -> None:
    """Raise `BudgetError` unless `keep` is a positive whole number of tokens or a share in (0, 1]."""
    if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
        raise BudgetError(f"keep={keep!r} is not a number: give tokens (64) or a share (0.11).")
    if isinstance(keep, numbers.Integral):
        if keep < 1:
            raise BudgetError(f"keep={keep} keeps nothing: give at least 1 token, or a share between 0 and 1.")
    elif not (0.0 < float(keep) <= 1.0):
        raise BudgetError(f"keep={keep} is no share: give 0 < keep <= 1, or a whole number of tokens.")


def certify(radius_cos: float) -> Certificate:
    """The coverage certificate of a 1 - cos covering radius (see `Certificate` for why the two factors differ)."""
    radius_cos = max(0.0, radius_cos)
    chord = math.sqrt(2.0 * radius_cos)
    return Certificate(radius_cos, chord, chord / 2.0)


def _finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. A finite sum tells without another tensor of that size."""
    return bool(torch.isfinite(values.detach().sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())


def _signature(tokens: VisualTokens) -> tuple[Any, ...]:
    """Only images that carry the same signals in the same shapes are stacked, so no image sees another's lack."""
    f, n = tokens.features, tokens.count
    scores = (tokens.saliency, tokens.relevance, tokens.geometry, tokens.saliency_span, tokens.relevance_span)
    shapes: list[Any] = []
    for name, v in sorted({"encoder": tokens.encoder, **tokens.extra}.items()):
        if v is not None:  # rows are cut to the group's, anything else stays as it is
            shapes.append((name, v.dtype, tuple(v.shape[1:] if v.dim() and v.shape[0] == n else v.shape)))
    return (f.shape[-1], f.dtype, f.device, *(s is None for s in scores), tuple(shapes))


def _stack(images: Sequence[VisualTokens]) -> VisualTokens:
    first = images[0]

    def stack(values: Iterable[Tensor | None]) -> Tensor | None:
        present = list(values)
        if present[0] is None:
            return None
        return present[0][None] if len(present) == 1 else torch.stack([v for v in present if v is not None])

    where = [t.geometry for t in images if t.geometry is not None]
    geometry = None
    if where:
        boxes, tile, frame = ([getattr(g, name) for g in where] for name in ("boxes", "tile", "frame"))
        geometry = Geometry(torch.stack(boxes), torch.stack(tile), torch.stack(frame))

    return VisualTokens(
        features=torch.stack([t.features for t in images]),
        saliency=stack(t.saliency for t in images),
        relevance=stack(t.relevance for t in images),
        geometry=geometry,
        encoder=stack(t.encoder for t in images),
        extra={k: torch.stack([t.extra[k] for t in images]) for k in first.extra},
        saliency_span=stack(t.saliency_span for t in images),
        relevance_span=stack(t.relevance_span for t in images),
    )


def _keep_all(batch: VisualTokens) -> Picks:
    b, n, _ = batch.features.shape
    rows = torch.arange(n, device=batch.features.device).expand(b, n)
    return Picks(rows=rows, stage=torch.full_like(rows, int(Stage.WHOLE)))


def _row(picks: Picks, b: int) -> Picks:
    values: dict[str, Any] = {}
    for f in fields(picks):
        value = getattr(picks, f.name)
        values[f.name] = None if value is None else value[b]
    return replace(picks, **values)


# ------------------------------------------------------------------------------------------------ registration by class

_METHODS: dict[str, type[Any]] = {}


def register(cls: type[Any]) -> type[Any]:
    """Class decorator: make `cls` known under `cls.name` (lower case, unique)."""
    name = getattr(cls, "name", "")
    if not name or name != name.lower() or not name.replace("-", "").isalnum():
        raise UsageError(f"{cls.__name__}.name={name!r}: give lower-case letters, digits and hyphens.")
    if name in _METHODS and _METHODS[name].__qualname__ != cls.__qualname__:
        raise UsageError(f"method {name!r} is registered already by {_METHODS[name].__module__}.")
    _METHODS[name] = cls
    return cls


def available() -> dict[str, type[Any]]:
    """All methods by name, those of installed plug-ins (entry points `fsr.methods`) included."""
    for point in entry_points(group="fsr.methods"):
        if point.name not in _METHODS:
            _METHODS[point.name] = point.load()
    return dict(sorted(_METHODS.items()))


def get(name: str, **options: Any) -> Any:
    """Build a method by name with its options; unknown names and options are errors that list the valid ones."""
    methods = available()
    if name not in methods:
        raise UsageError(f"unknown method {name!r}: choose one of {', '.join(methods)}.")
    known = [f.name for f in fields(methods[name])]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"{name} has no option {', '.join(unknown)}: it takes {', '.join(known)}.")
    return methods[name](**options)
