"""One call with pictures: where their tokens stand in the prompt, and what each drop takes away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Token
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fsr.errors import FeatureError, UsageError, counted
from fsr.methods.in_llm import Choice, InLLMMethod, View
from fsr.pipeline.in_llm.columns import Columns, DropColumns
from fsr.pipeline.in_llm.views import LayerInputs
from fsr.pipeline.report import Drop, InLLMReport, Report
from fsr.pipeline.shorten import Run, shrink

__all__ = ["Call", "Picture"]


@dataclass
class Picture:
    """One picture of one prompt: the columns where its tokens stand now, and which of its tokens they are.

    columns, tokens: long [N], rising. entered: tokens of the picture that entered the language model.
    order: long [N], the rank at which the method before the language model chose each of them.
    """

    row: int
    columns: Tensor
    tokens: Tensor
    entered: int
    order: Tensor


@dataclass
class Call:
    """One `generate` or one `forward` with pictures.

    owner: whose hooks may read it. report: what happened in front of the language model; publish: takes the finished
        one.
    single: closes itself behind the next forward. choosing: the prompt runs right now; fresh: so does the whole
        sequence; foreign: a forward that is not of this prompt. ran: layers whose hooks ran while it was choosing.
    taps: what hooks saw, by (layer, name). valid: bool [B, S], columns that hold a token.
    """

    owner: Any
    report: Report
    publish: Callable[[Report], None]
    single: bool = False
    token: Token[Any] | None = None
    choosing: bool = False
    fresh: bool = False
    foreign: bool = False
    ran: set[int] = field(default_factory=set)
    columns: Columns | None = None
    pictures: list[Picture] = field(default_factory=list)
    valid: Tensor | None = None
    taps: dict[tuple[int, str], Any] = field(default_factory=dict)
    drops: list[Drop] = field(default_factory=list)

    def owns(self, ids: Any) -> bool:
        """Whether a forward of these ids from the first column on runs this call's prompt (a draft may follow it)."""
        prompt = self.report.input_ids
        if not isinstance(ids, Tensor):
            return True  # `open` says what is wrong
        if ids.dim() != 2 or ids.shape[0] % prompt.shape[0] or ids.shape[1] < prompt.shape[1]:
            return False
        prompt = prompt.repeat_interleave(ids.shape[0] // prompt.shape[0], dim=0)
        return torch.equal(ids[:, : prompt.shape[1]], prompt.to(ids.device))

    def open(self, ids: Any, mask: Any, placeholders: Sequence[int]) -> None:
        """Find the pictures in the prompt as it enters the language model (beams and return sequences repeat its rows).

        What stands behind the prompt (candidates of assisted decoding and prompt lookup) are later tokens.

        Raises:
            UsageError: no `input_ids` [B, L], or a mask that is not 2-D.
            FeatureError: placeholders and tokens do not match.
        """
        if not isinstance(ids, Tensor) or not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
            raise UsageError("pruning inside the language model needs input_ids [B, L] and a 2-D mask, or none.")
        prompts, length = self.report.input_ids.shape
        ids, mask = ids[:, :length], None if mask is None else mask[:, :length]
        copies = ids.shape[0] // prompts
        counts: list[list[int]] = [[] for _ in range(prompts)]
        orders: list[list[Tensor]] = [[] for _ in range(prompts)]
        for selection, row in zip(self.report.selections, self.report.rows):
            counts[row].append(selection.kept)
            orders[row].append(selection.order)
        taken = torch.isin(ids, torch.tensor(list(placeholders), device=ids.device))
        found: list[list[Picture]] = [[] for _ in range(copies)]
        for row in range(ids.shape[0]):
            places, mine = taken[row].nonzero().squeeze(-1), counts[row // copies]
            if len(places) != sum(mine):
                raise FeatureError(
                    f"prompt {row} has {counted(len(places), 'placeholder')} and its pictures have "
                    f"{counted(sum(mine), 'token')}: "
                    "make prompt and pixels with the same processor call."
                )
            for columns, order in zip(places.split(mine) if mine else (), orders[row // copies]):
                tokens = torch.arange(len(columns), device=ids.device)
                found[row % copies].append(Picture(row, columns, tokens, len(columns), order.to(ids.device)))
        # The first copy of every picture comes first, in prompt order: the report tells of these.
        self.pictures = [picture for group in found for picture in group]
        if self.pictures:
            self.valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
            self.columns, self.choosing = Columns(ids.shape[1]), True

    def budgets(self, method: InLLMMethod, step: int, depth: int) -> list[int]:
        """Tokens of each picture behind this drop."""
        return [min(method.budgets(p.entered, depth)[step], len(p.columns)) for p in self.pictures]

    @torch.no_grad()
    def drop(self, method: InLLMMethod, budgets: list[int], layer: int, inputs: LayerInputs) -> None:
        """Let the method choose from every picture that has more than its budget, and record what stays."""
        columns, valid, earlier = self.columns, self.valid, inputs.earlier
        if columns is None or valid is None:
            return
        choices = [
            method.choose(self._view(p, valid, inputs, method.ordered), k)
            if k < len(p.columns)
            else Choice(torch.arange(k, device=p.columns.device))
            for k, p in zip(budgets, self.pictures)
        ]
        width = valid.shape[1]
        runs = [Run(p.row * width + p.columns, p.row) for p in self.pictures]
        local = shrink(valid.long(), runs, [c.rows for c in choices], [len(p.columns) for p in self.pictures])
        kept = local >= 0
        self.valid = valid.gather(1, local.clamp_min(0)) & kept
        # Where each column of the layer before stands now.
        place = torch.full_like(valid, -1, dtype=torch.long)
        rows, at = kept.nonzero(as_tuple=True)
        place[rows, local[rows, at]] = at
        source = local if earlier is None else earlier.source.gather(1, local.clamp_min(0)).masked_fill(~kept, -1)
        merged = []
        for p, c in zip(self.pictures, choices):
            if c.merged is not None and c.states is not None:
                merged.append((p.row, place[p.row, p.columns[c.merged.to(place.device)]], c.states))
            stay = c.rows.sort().values.to(p.columns.device)
            p.tokens, p.columns, p.order = p.tokens[stay], place[p.row, p.columns[stay]], p.order[stay]
        columns.drops.append(DropColumns(layer, width, local, source, not bool(kept.all()), tuple(merged)))
        self.drops.append(Drop(method.name, layer, tuple(p.tokens for p in self.pictures)))

    def _view(self, picture: Picture, valid: Tensor, inputs: LayerInputs, ordered: bool) -> View:
        view = inputs.view(picture.row, picture.columns, self.text_behind(picture, valid))
        return replace(view, order=picture.order) if ordered else view

    def text_behind(self, picture: Picture, valid: Tensor) -> Tensor:
        """Columns of the text behind a picture: long [T], without padding and other pictures."""
        text = valid[picture.row].clone()
        text[: int(picture.columns[-1]) + 1] = False
        for other in self.pictures:
            if other.row == picture.row:
                text[other.columns] = False
        return text.nonzero().squeeze(-1)

    def finished(self, depth: int) -> Report:
        """The report, completed by what was dropped in a language model of `depth` layers."""
        n = len(self.report.selections)
        last = None if self.columns is None else self.columns.at(depth)
        in_llm = InLLMReport(
            entered=tuple(s.kept for s in self.report.selections),
            depth=depth,
            drops=tuple(replace(d, rows=d.rows[:n]) for d in self.drops),
            columns=None if last is None else last.source,
        )
        return replace(self.report, in_llm=in_llm, notes=(*self.report.notes, *in_llm.notes))
