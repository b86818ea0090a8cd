"""What a pruning method is: a frozen dataclass of options and one function on stacked tensors, `pick`.

The base class does everything that all methods share: the meaning of the budget, scopes (per image, tile or frame),
structural rows, checks of the input, stacking images of equal N, raster order. A method is one file with one `pick`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fsr.errors import RelevanceError
from fsr.methods.budget import certify, check_keep, count_of
from fsr.methods.budget_groups import Group, groups_of
from fsr.methods.chain import BEFORE_LLM, Chainable
from fsr.methods.checks import check_shapes, finite, refuse_nonfinite
from fsr.methods.options import check_options
from fsr.methods.picks import Picks, keep_all, row, signature, stack, with_numbers
from fsr.methods.picture_budgets import Keep, KeepFor, Shape, checked, per_picture
from fsr.methods.registry import available, get, register
from fsr.tokens import Selection, Stage, VisualTokens

__all__ = ["Method", "Picks", "Signal", "available", "certify", "check_keep", "get", "register"]

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
class Method(Chainable, ABC):
    """Base of all methods that prune before the language model.

    Args:
        keep: tokens to keep per image (int >= 1) or share of them (float in (0, 1]); the only meaning of budget here. A
            list gives one per picture in prompt order, a function one for each (see `picture_budgets`, `by_age`).
        per: what `keep` counts in: the whole image or clip, each tile of a tiled image, each frame of a video.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    licence_note: ClassVar[str] = ""
    needs: ClassVar[frozenset[Signal]] = frozenset()
    where: ClassVar[str] = BEFORE_LLM
    # Where the paper takes relevance from, if that is part of the method: what relevance="auto" means for it.
    own_relevance: ClassVar[str | None] = None

    keep: Keep | Sequence[Keep] | KeepFor = 64
    per: Scope = "image"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", checked(self.keep))
        check_options(self)

    @abstractmethod
    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """Choose exactly k of N rows for each of B stacked images.

        All tensors have B in front: features [B, N, D], scores [B, N], geometry.boxes [B, N, 4] (no grid); 1 <= k < N.
        """

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

    def budget(self, total: int, keep: Any = None) -> int:
        """K for an image (or tile, or frame) of `total` tokens: never more than `total`, never fewer than one.

        keep: the budget of this very picture where the method has one per picture.

        Raises:
            BudgetError: the method has a budget per picture, and none was given.
        """
        return count_of(self.keep if keep is None else keep, total)

    def budget_of(self, tokens: VisualTokens, keep: Any = None) -> int:
        """K for one whole image, summed over its tiles or frames where the budget is counted by those."""
        (groups,), _ = groups_of([tokens], self.per, [])
        return sum(self.budget(group.size, keep) for group in groups)

    def __call__(self, images: Sequence[VisualTokens], keeps: Sequence[Keep] | None = None) -> list[Selection]:
        """Select from each image. Results do not depend on which other images are in the list, unless `keep` is a list
        or a function.

        keeps: the budget of each image; None: what `keep` says of the pictures of one prompt, in this order.

        The host synchronises with the device twice, for all images together: for the checks before `pick`, and for
        the numbers of the report after it.

        Raises:
            FeatureError: NaN or infinite features or scores, or scores of the wrong length.
            RelevanceError: a signal that this method needs is missing.
            BudgetError: `keep` as a list or function does not fit these images.
        """
        keeps = per_picture(self.keep, [Shape.of(i) for i in images], [0] * len(images)) if keeps is None else keeps
        extras = [self._extras(tokens) for tokens in images]
        for tokens, extra in zip(images, extras):
            check_shapes(tokens, extra)
        groups, fine = groups_of(images, self.per, [finite(t, e) for t, e in zip(images, extras)])
        for tokens, extra, good in zip(images, extras, fine):
            if not good:
                refuse_nonfinite(tokens, extra)
            for signal in sorted(self.signals()):
                self.need(tokens, signal)

        whole: set[int] = set()
        stacks: dict[tuple[Any, ...], list[tuple[int, Group]]] = {}
        for i, tokens in enumerate(images):
            if sum(self.budget(group.size, keeps[i]) for group in groups[i]) >= tokens.count:
                whole.add(i)
                continue
            for group in groups[i]:
                k = min(self.budget(group.size, keeps[i]), group.count)
                if group.count:
                    kind = (group.count, k, group.patches is None, *signature(tokens))
                    stacks.setdefault(kind, []).append((i, group))
        parts: dict[int, list[tuple[Tensor, Picks]]] = {i: [] for i in range(len(images))}
        # Once per image, not once per tile.
        spanned = [tokens.with_spans() if len(g) > 1 else tokens for tokens, g in zip(images, groups)]
        picked = []
        for (n, k, *_), members in stacks.items():
            rows = [group.rows(images[i].features.device) for i, group in members]
            batch = stack([images[i] if g.patches is None else spanned[i].take(r) for (i, g), r in zip(members, rows)])
            picked.append((members, rows, self.pick(batch, k) if k < n else keep_all(batch)))
        for (members, rows, _), picks in zip(picked, with_numbers([picks for *_, picks in picked])):
            for b, (i, _) in enumerate(members):
                parts[i].append((rows[b], row(picks, b)))
        return [
            self._whole(tokens, keeps[i]) if i in whole else self._merge(tokens, parts[i])
            for i, tokens in enumerate(images)
        ]

    # ------------------------------------------------------------------------------------------------------------------

    def _extras(self, tokens: VisualTokens) -> dict[str, Tensor]:
        extras: dict[str, Tensor] = {name: tokens.extra[name] for name in self.signals() if name in tokens.extra}
        if "encoder" in self.signals() and tokens.encoder is not None:
            extras["encoder"] = tokens.encoder
        return extras

    def _whole(self, tokens: VisualTokens, keep: Keep) -> Selection:
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
            notes=(f"nothing pruned: the image has {n} tokens and the budget is {keep} per {self.per}",),
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
        priority = torch.zeros(n, device=device) if any(p.priority is not None for _, p in parts) else None
        for original, p in parts:
            if p.merged_into is not None:
                target = torch.where(p.merged_into >= 0, original[p.merged_into.clamp_min(0)], -1)
                merged[original] = target
            if p.priority is not None and priority is not None:
                priority[original] = p.priority.float()
        reached = [float(p.radius_cos) for _, p in parts if p.radius_cos is not None]
        wanted = [int(p.focus_wanted) for _, p in parts if p.focus_wanted is not None]
        radii = parts[0][1].radii if len(parts) == 1 else None
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
            radii=None if radii is None else radii[~radii.isnan()],
            focus_wanted=sum(wanted) if wanted else None,
            certificate=certify(max(reached)) if reached else None,
            geometry=tokens.geometry,
            method=self.name,
        )
