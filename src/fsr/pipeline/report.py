"""What comes out of `prepare`: the arguments for the model, and a report of what was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.containers import fresh
from fsr.errors import UsageError
from fsr.pipeline.center_crop import placed
from fsr.pipeline.shorten import gather
from fsr.tokens import Selection, Stage

__all__ = ["Drop", "InLLMReport", "Prepared", "Report", "after_drops"]


@dataclass(frozen=True)
class Drop:
    """One drop inside the language model: in front of decoder layer `layer` (0-based), by `method`.

    rows: per picture long [K], the tokens that stay, as rising numbers into those that entered the language model.
    """

    method: str
    layer: int
    rows: tuple[Tensor, ...]


@dataclass(frozen=True)
class InLLMReport:
    """What happened to the pictures inside the language model.

    entered: tokens per picture that entered it; depth: its decoder layers; drops: first layer first (none if the budget
        held all).
    columns: long [B, S], the columns of the prompt that the last layer still held (-1: filler), which is what the rows
        of a direct forward's logits mean; None if nothing was dropped.
    """

    entered: tuple[int, ...]
    depth: int
    drops: tuple[Drop, ...]
    columns: Tensor | None

    @property
    def layer_average(self) -> float:
        """Visual tokens of all pictures, averaged over the decoder layers."""
        edges = [0, *(d.layer for d in self.drops), self.depth]
        counts = [sum(self.entered), *(sum(len(r) for r in d.rows) for d in self.drops)]
        return sum(c * (hi - lo) for c, lo, hi in zip(counts, edges, edges[1:])) / self.depth

    @property
    def notes(self) -> tuple[str, ...]:
        """The same in words."""
        if not self.drops:
            return ("nothing dropped inside the language model: the budget holds every token that enters it",)
        steps = [
            f"{d.method}: {sum(map(len, d.rows))} of {sum(self.entered)} visual tokens from decoder layer {d.layer} on"
            for d in self.drops
        ]
        return (*steps, f"on average {self.layer_average:.1f} visual tokens per decoder layer")


@dataclass(frozen=True)
class Report:
    """What pruning did to one call.

    selections: one per picture or clip, in prompt order; rows: the batch row each belongs to.
    input_ids: [B, L'] the shortened prompt (what a continuation of the KV cache must start with).
    attention_mask: [B, L'] which of its columns count; labels: [B, L'] the call's `labels`, shortened, or None.
    columns: long [B, L'], the column of the user's prompt that each column of the shortened one was; -1 for filler.
    length_before, length_after: columns L and L' of the prompt, padding included.
    timings: milliseconds by stage: vision_tower, saliency, text_tower, selection, rest, total.
    positions: "repack" or "original", "mixed" where rows of one batch differ; questions: one per batch row where
        relevance was computed, else None.
    relevance: where it came from ("first-layer", "embedding", a text tower's name), "none" where it was not computed.
    in_llm: what methods inside the language model dropped after that, None where there is none.
    kernels: what ran the greedy loops: "cpu", "triton" or "plain" (torch loops, where neither of the others exists; on
        CUDA `notes` then says so).
    """

    selections: tuple[Selection, ...]
    rows: tuple[int, ...]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    columns: Tensor
    length_before: int
    length_after: int
    timings: Mapping[str, float]
    positions: str
    questions: tuple[str | None, ...] | None
    notes: tuple[str, ...] = ()
    in_llm: InLLMReport | None = None
    kernels: str = "cpu"
    relevance: str = "none"

    @classmethod
    def of_text(cls, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None) -> Report:
        """A call without pictures: nothing was taken from its prompt [B, L]."""
        width = input_ids.shape[1]
        return cls(
            selections=(),
            rows=(),
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            columns=torch.arange(width, device=input_ids.device).expand_as(input_ids),
            length_before=width,
            length_after=width,
            timings={},
            positions="original",
            questions=None,
            notes=("no pictures in this call: nothing was pruned",),
        )

    def show(self, image: Any = None, which: int = 0, size: int = 720) -> Any:
        """Picture `which` of the call with its kept tokens marked, a PIL image (notebooks display it).

        image: the picture as the processor was given it; for a clip its frames. None: a blank ground, for the report
            holds no pixels. What the processor cut off is dim; that takes `processor=` in `prune` or `prepare`: without
            one, give the part that it cuts out.

        Raises:
            UsageError: the call had fewer pictures.
        """
        from fsr.drawing.kept_tokens import blank, draw

        if not 0 <= which < len(self.selections):
            raise UsageError(f"no picture {which}: this call had {len(self.selections)}, numbered from 0.")
        selection = self.selections[which]
        if image is None:
            return draw(blank(selection.geometry), placed(selection, None), size)
        return draw(image, selection, size)

    def shorten(self, value: Tensor, fill: int = 0) -> Tensor:
        """Anything that stands beside the user's prompt column by column (labels, masks, weights), [B, L], as it stands
        beside the shortened one: [B, L'].

        fill: what filler columns get (-100 for labels).

        Raises:
            UsageError: another number of columns than the prompt had.
        """
        if value.dim() != 2 or value.shape[1] != self.length_before:
            raise UsageError(f"shorten() takes [B, {self.length_before}], the columns of the prompt as it was given.")
        return gather(value, self.columns, fill)

    @property
    def at_last_layer(self) -> tuple[Selection, ...]:
        """`selections` as the last decoder layer held them: without what was dropped inside the language model."""
        return after_drops(self.selections, () if self.in_llm is None else self.in_llm.drops)

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all pictures before pruning."""
        return sum(s.total for s in self.selections)

    @property
    def tokens_after(self) -> int:
        """Visual tokens of all pictures after pruning."""
        return sum(s.kept for s in self.selections)

    @property
    def budgets(self) -> tuple[str, ...]:
        """One line per picture: what was kept over all of it, and of each tile or frame where it has several."""
        return tuple(_budget(i, s) for i, s in enumerate(self.selections))


def after_drops(selections: Sequence[Selection], drops: Sequence[Drop]) -> tuple[Selection, ...]:
    """Selections cut to the tokens of the last drop, which are numbered among those that entered the language model."""
    if not drops:
        return tuple(selections)
    found = []
    for i, s in enumerate(selections):
        kept = drops[-1].rows[i].to(s.rows.device)
        stage = s.stage[kept]
        found.append(
            replace(
                s,
                rows=s.rows[kept],
                features=s.features[kept],
                stage=torch.where(stage == Stage.WHOLE, int(Stage.FOCUS), stage),
                order=s.order[kept],
                radii=None,
                certificate=None,
                method=" | ".join(
                    dict.fromkeys(([] if s.method == "whole" else [s.method]) + [d.method for d in drops])
                ),
            )
        )
    return tuple(found)


def _budget(number: int, selection: Selection) -> str:
    line = f"picture {number}: {selection.kept} of {selection.total} tokens"
    where = selection.geometry
    if where is None:
        return line
    rows = selection.rows.to(where.tile.device)
    for what, label in (("tile", where.tile), ("frame", where.frame)):
        groups = label[where.tile >= 0].unique()
        if len(groups) > 1:
            kept = [int(((label[rows] == g) & (where.tile[rows] >= 0)).sum()) for g in groups]
            line += f"; by {what} ({len(groups)}): {', '.join(map(str, kept))}"
    return line


@dataclass(frozen=True)
class Prepared(Mapping[str, Any]):
    """Keyword arguments for `model.generate(**prepared)` or `model(**prepared)`, and the report.

    Outputs of `generate` start with the shortened prompt (`report.input_ids`).
    """

    _inputs: Mapping[str, Any]
    report: Report

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments as a new dict; feature containers are copied because beam search changes them."""
        return {name: self[name] for name in self._inputs}

    def __getitem__(self, name: str) -> Any:
        value = self._inputs[name]
        return {m: fresh(o) for m, o in value.items()} if name == "mm_encoder_outputs" else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)
