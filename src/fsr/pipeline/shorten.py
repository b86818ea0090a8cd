"""Shortening a batch of prompts: which columns stay, and every per-token tensor gathered and padded alike. Knows no
model.

B rows, L columns before, L' after. The whole change is one index, `source` [B, L']: the old column of each new one, -1
for padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsr.errors import FeatureError, UsageError, counted

__all__ = [
    "Run",
    "gather",
    "inferred_mask",
    "mask_one_column",
    "placeholder_units",
    "repacked_positions",
    "rows_with",
    "shortened_logits_to_keep",
    "shrink",
]

# What a padded place holds; everything else is padded with 0.
FILL = {"labels": -100, "attention_mask": 0}


@dataclass(frozen=True)
class Run:
    """The placeholders of one picture: `places` long [M], flat indices into [B * L] in scatter order (row by row, left
    to right)."""

    places: Tensor
    row: int


def placeholder_units(input_ids: Tensor, token_id: int, counts: Sequence[int], modality: str) -> list[Run]:
    """Deal the placeholders of one modality out to its units in scatter order.

    Raises:
        FeatureError: prompt and pictures do not belong together (different totals), or a picture spans two rows.
    """
    places = (input_ids == token_id).flatten().nonzero().squeeze(-1)
    if len(places) != sum(counts):
        raise FeatureError(
            f"the prompt has {counted(len(places), f'{modality} placeholder')} and the pictures give "
            f"{counted(sum(counts), 'feature')}: "
            "make prompt and pixels with the same processor call, and cut neither (max_length, truncation)."
        )
    runs = []
    for part in places.split(list(counts)):
        rows = part // input_ids.shape[1]
        if len(part) == 0 or bool((rows != rows[0]).any()):
            raise FeatureError(
                f"one {modality} would fill the placeholders of two prompts: every row needs those of its own pictures."
            )
        runs.append(Run(part, int(rows[0])))
    return runs


def rows_with(input_ids: Tensor, token_ids: Sequence[int]) -> list[int]:
    """Rows of `input_ids` [B, L] that hold any of these ids."""
    there = torch.zeros_like(input_ids, dtype=torch.bool)
    for token in token_ids:
        there |= input_ids == token
    return there.any(dim=1).nonzero().squeeze(-1).tolist()


def inferred_mask(input_ids: Tensor, pad: int | None, eos: Sequence[int]) -> Tensor:
    """The mask that `generate` infers when none is given: padding is what equals `pad`, unless pad also ends
    sentences."""
    if pad is None or pad in eos:
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()


def shrink(mask: Tensor, runs: Sequence[Run], kept: Sequence[Tensor], totals: Sequence[int]) -> Tensor:
    """The columns that stay, as `source` long [B, L'].

    Only two kinds of columns go: placeholders that are not kept, and padding in front of a row. Rows stay aligned at
    their ends, for callers count from there (log-probabilities of a completion): whatever stands behind the last
    picture of a row, padding included, is as far from the end as it was. Rows that lose more than others are filled up
    in front.

    mask: [B, L], 0 for padding.
    kept: per run the K rows of its picture that stay; totals: its N. With as many placeholders as tokens, token i sits
    at placeholder i. With another number (families whose processor writes one placeholder, or another length) the run
    becomes K long.
    """
    b, width = mask.shape
    repeats = (mask != 0).long().cummax(-1).values.flatten()  # 0 for the padding in front only
    for run, rows, total in zip(runs, kept, totals):
        repeats[run.places] = 0
        places = run.places
        if len(places) == total:
            repeats[places[rows.to(places.device)]] = 1
        else:
            repeats[places[: len(rows)]] = 1
            repeats[places[0]] += max(0, len(rows) - len(places))
    repeats = repeats.view(b, width)
    columns = torch.arange(width, device=mask.device)
    rows_left = [columns.repeat_interleave(r) for r in repeats]
    longest = max(len(r) for r in rows_left)
    source = torch.full((b, longest), -1, dtype=torch.long, device=mask.device)
    for i, r in enumerate(rows_left):
        source[i, longest - len(r) :] = r
    return source


def gather(value: Tensor, source: Tensor, fill: int) -> Tensor:
    """`value` [..., B, L] (or [..., 1, L], one row for all) at `source` [B, L'], padded with `fill`."""
    if value.shape[-2:-1] not in (source.shape[:1], (1,)):
        raise UsageError(f"a per-token tensor has {value.shape[-2]} rows and the prompt has {source.shape[0]}.")
    source = source.to(value.device)
    value = value.expand(*value.shape[:-2], source.shape[0], value.shape[-1])
    index = source.clamp_min(0).expand(*value.shape[:-2], *source.shape)
    return value.gather(-1, index).masked_fill(source < 0, fill)


def shortened_logits_to_keep(value: Tensor, source: Tensor, width: int) -> Tensor:
    """A `logits_to_keep` of numbers or of booleans over `width` columns, as it means the same of `source` [B, L'].

    Raises:
        UsageError: a column that went, that lies differently in the rows of the batch, or that the prompt lacks.
    """
    columns = torch.arange(width, device=source.device)
    try:
        wanted = columns[value.to(source.device)].tolist() if value.dim() == 1 else None
    except IndexError:
        wanted = None
    if wanted is None:
        raise UsageError(
            f"logits_to_keep of shape {tuple(value.shape)} does not name columns of a prompt of {width}: give a vector "
            "of their numbers, or of one boolean each."
        )
    found = []
    for column in wanted:
        here = (source == column).all(0).nonzero().flatten()
        if len(here) != 1:
            raise UsageError(
                f"logits_to_keep names column {column} of the prompt, which is not one column of the shortened prompt: "
                "a visual token that was dropped, or rows that lost different numbers. Leave it out and read the "
                "logits by pruned.last.columns."
            )
        found.append(int(here))
    return torch.tensor(found, dtype=torch.long, device=value.device)


def repacked_positions(mask: Tensor) -> Tensor:
    """Consecutive numbers over the unmasked places, 0 elsewhere: what `generate` computes for 1-D RoPE. [B, L] -> long
    [B, L]."""
    mask = mask.long()
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def mask_one_column(kwargs: dict[str, Any], source: Tensor, pad: int) -> None:
    """Put one masked column in front, so that `generate` cannot drop the mask and take gapped positions for packed
    prompts."""
    shape = source.shape
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.shape[-2:] == shape:
            first = torch.full_like(value[..., :1], pad if name == "input_ids" else FILL.get(name, 0))
            kwargs[name] = torch.cat([first, value], dim=-1)
