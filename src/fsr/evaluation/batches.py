"""Questions that are asked together, where the things lie that they ask about, and what came of a choice of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.evaluation.question_set import QuestionSet
from fsr.evaluation.record import Outcome
from fsr.pipeline.encode import EncodedPrompt
from fsr.tokens import Selection

__all__ = ["Batch", "batch_of", "outcomes"]


@dataclass(frozen=True)
class Batch:
    """Questions that are asked together.

    items: their numbers in the set. prompts: `input_ids` and the like, one row per question.
    seen: the pictures, one per row. directions: float32 [N, D] per row, their unit vectors.
    owner: long [N] per row, the object on each token (-2 sign, -1 ground).
    asked, big: bool [N] per row, tokens on the asked objects, on the big distractor.
    """

    items: list[int]
    prompts: dict[str, Any]
    seen: EncodedPrompt
    directions: list[Tensor]
    owner: list[Tensor]
    asked: list[Tensor]
    big: list[Tensor]


def batch_of(questions: QuestionSet, items: list[int], prompts: dict[str, Any], seen: EncodedPrompt) -> Batch:
    """The questions of these numbers; prompts and seen: one row and one encoded picture each."""
    units = seen.parts[0].units
    owners, asked, big = [], [], []
    for i, unit in zip(items, units):
        item = questions.items[i]
        scene = questions.scenes[item.scene]
        owner = torch.from_numpy(scene.owner).to(unit.features.device)
        boxes = unit.geometry.boxes.nan_to_num(0)  # type: ignore[union-attr]
        column, row = (
            ((boxes[:, j] + boxes[:, j + 2]) / 2 * n).long().clamp(0, n - 1)
            for j, n in enumerate(reversed(owner.shape))
        )
        here = owner[row, column]
        distractors = [j for j, o in enumerate(scene.objects) if o.big and j not in item.question.targets]
        owners.append(here)
        asked.append(torch.isin(here, here.new_tensor(item.question.targets)))
        big.append(torch.isin(here, here.new_tensor(distractors)))
    known = {id(u.features): normalize(u.features.float(), dim=-1) for u in {id(u.features): u for u in units}.values()}
    # Pixels are encoded already; their sizes may still be needed for positions.
    prompts = {k: v for k, v in prompts.items() if not k.startswith("pixel_values")}
    return Batch(items, prompts, seen, [known[id(u.features)] for u in units], owners, asked, big)


def outcomes(batch: Batch, selections: Sequence[Selection], texts: Sequence[str]) -> list[Outcome]:
    """What a choice of tokens led to, question by question."""
    found = []
    for b, (item, selection, text) in enumerate(zip(batch.items, selections, texts)):
        rows, directions = selection.rows, batch.directions[b]
        asked, big = batch.asked[b], batch.big[b]
        nearest = (directions @ directions[rows].T).amax(-1).amin()
        about, distracted = bool(asked.any()), bool(big.any())
        objects = batch.owner[b][asked].unique()
        found.append(
            Outcome(
                item=item,
                answer=text.strip(),
                kept=selection.kept,
                focus=selection.n_focus,
                scan=selection.n_scan,
                wanted=selection.focus_wanted,
                radius=round(float((2 * (1 - nearest)).clamp_min(0).sqrt()), 6),
                on_asked=round(float(asked[rows].float().mean()), 6) if about else None,
                on_big=round(float(big[rows].float().mean()), 6) if distracted else None,
                seen=round(float(asked[rows].sum() / asked.sum()), 6) if about else None,
                found=round(float(torch.isin(objects, batch.owner[b][rows]).float().mean()), 6) if about else None,
            )
        )
    return found
