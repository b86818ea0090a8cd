"""Which rows of an image share a budget: all, those of a tile, those of a frame; structural rows are never dropped.

How many rows a group has decides the shapes of everything after it, so this is worked out on the CPU, from one transfer
for all images of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.device import to_cpu
from fsr.errors import FeatureError
from fsr.tokens import VisualTokens

__all__ = ["Group", "groups_of"]


@dataclass(frozen=True)
class Group:
    """Rows with one budget. size: how many, structural ones counted; patches: long [M] on the CPU, the others, or None
    where the group is the whole image without any structural row."""

    size: int
    patches: Tensor | None

    @property
    def count(self) -> int:
        """M."""
        return self.size if self.patches is None else len(self.patches)

    def rows(self, device: torch.device) -> Tensor:
        """Long [M] on a device, without waiting for it."""
        if self.patches is None:
            return torch.arange(self.size, device=device)
        return self.patches.to(device, non_blocking=True)


def groups_of(
    images: Sequence[VisualTokens], per: str, flags: Sequence[Tensor]
) -> tuple[list[list[Group]], list[bool]]:
    """The groups of each image, and the values of `flags` (bool []), all read with one transfer from the device.

    per: 'image', 'tile' or 'frame'. Images without geometry are one group.

    Raises:
        FeatureError: an image of structural rows only.
    """
    ask = list(flags)
    labelled = []
    for tokens in images:
        if tokens.structural is not None:
            ask.append(tokens.structural)
        label = None
        if per != "image" and tokens.geometry is not None:
            label = tokens.geometry.tile if per == "tile" else tokens.geometry.frame
            ask.append(label)
        labelled.append(label is not None)
    told = iter(to_cpu(ask))
    values = [bool(next(told)) for _ in flags]
    groups = []
    for tokens, has_label in zip(images, labelled):
        structural = None if tokens.structural is None else next(told)
        groups.append(_groups(tokens.count, structural, next(told) if has_label else None))
    return groups, values


def _groups(n: int, structural: Tensor | None, label: Tensor | None) -> list[Group]:
    if structural is not None and bool(structural.all()):
        raise FeatureError("every row is structural: there is no patch to choose from; check the adapter's mask.")
    if structural is not None and not bool(structural.any()):
        structural = None
    if label is None and structural is None:
        return [Group(n, None)]
    everything = torch.arange(n)
    if label is None:
        members = [everything]
    else:
        # A structural row belongs to the group of the patch before it.
        if structural is not None:
            label = label[torch.where(structural, -1, everything).cummax(0).values.clamp_min(0)]
        members = [everything[label == g] for g in label.unique()]
    return [Group(len(rows), rows if structural is None else rows[~structural[rows]]) for rows in members]
