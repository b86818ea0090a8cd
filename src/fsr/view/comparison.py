"""What a report shows: a question about a picture, answered with all tokens and with what each method keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from fsr.asking.encoded_picture import EncodedPicture, TimedAnswer
from fsr.errors import UsageError
from fsr.methods.base import Method
from fsr.methods.parts import label_of
from fsr.pipeline.center_crop import center_crop, placed
from fsr.tokens import Selection, Stage

__all__ = [
    "Comparison",
    "MethodRun",
    "compare_methods",
    "covered",
    "cropped_as_seen",
    "nearest_kept",
    "notes_of",
    "run_of",
]


@dataclass(frozen=True)
class MethodRun:
    """One run. name: of the method, with options that are not the usual ones. rho, mass: of FSR's Eq. 4 (rho is None
    where it does not stop Focus). covered: the share of the priority mass that is covered after each token of a Focus
    by volume or distinct tokens (None for other methods). nearest, likeness: for each of N tokens the kept token that
    is most like it and their cosine (None where only a selection is known). relevance: where it came from."""

    name: str
    text: str
    selection: Selection
    stages_ms: Mapping[str, float]
    rho: float | None = None
    mass: str = "all"
    covered: tuple[float, ...] | None = None
    nearest: tuple[int, ...] | None = None
    likeness: tuple[float, ...] | None = None
    relevance: str = "none"

    @property
    def keep(self) -> int:
        """K."""
        return self.selection.kept


@dataclass(frozen=True)
class Comparison:
    """image: what the model saw, or the frames of a clip. runs: methods in the order asked for, budgets falling."""

    question: str
    model: str
    image: Image.Image | Sequence[Image.Image]
    unpruned: MethodRun
    runs: tuple[MethodRun, ...]
    notes: tuple[str, ...] = ()

    @property
    def primary(self) -> MethodRun:
        """What maps and steps are about: FSR, or the first method."""
        return next((run for run in self.runs if run.name == "fsr"), self.runs[0])

    def read_by(self, name: str) -> MethodRun | None:
        """The run whose saliency or relevance is shown: `primary` if it read that score, else the first that did."""
        runs = (self.primary, *self.runs)
        return next((run for run in runs if getattr(run.selection, name) is not None), None)

    def score(self, name: str) -> Tensor | None:
        """Saliency or relevance of all N tokens, see `read_by`."""
        run = self.read_by(name)
        return None if run is None else getattr(run.selection, name)


def compare_methods(
    model: Any,
    processor: Any,
    image: Image.Image,
    questions: Sequence[str],
    methods: Sequence[Method],
    *,
    name: str = "",
    relevance: Any = "auto",
    max_new_tokens: int = 32,
    progress: Callable[[str], None] | None = None,
) -> list[Comparison]:
    """Ask every question with all tokens and with every method; the picture is encoded once.

    Args:
        methods: built with their budgets. name: of the model, for headings. relevance: as for `prune`.
        progress: called with a line of text before each answer.

    Raises:
        UsageError: no question, no method, or one that does not prune before the language model.
    """
    if not questions or not methods:
        raise UsageError("give at least one question and one method.")
    picture = EncodedPicture(model, processor, image, methods, relevance=relevance)
    tell = progress or (lambda _: None)
    tell("warming up")
    picture.ask(questions[0], methods[0], max_new_tokens=2)
    picture.seen = None  # so that the vision tower is timed warm as well
    comparisons = []
    for question in questions:
        tell(f"{question} — all tokens")
        whole = picture.ask(question, max_new_tokens=max_new_tokens)
        unpruned = MethodRun("all tokens", whole.text, placed(whole.selection, None), whole.stages_ms)
        runs = []
        for method in methods:
            tell(f"{question} — {label_of(method)}, keep {method.keep}")
            runs.append(run_of(method, picture.ask(question, method, max_new_tokens=max_new_tokens)))
        comparisons.append(
            Comparison(question, name, cropped_as_seen(processor, image), unpruned, tuple(runs), notes_of(runs))
        )
    return comparisons


def run_of(method: Method, asked: TimedAnswer) -> MethodRun:
    """An answer as a report shows it."""
    selection = placed(asked.selection, None)  # comparisons show what the model saw, not what was cut off
    nearest, likeness = nearest_kept(asked.tokens.features, selection.rows)
    compared = asked.tokens.encoder if getattr(method, "distance", "") == "encoder" else asked.tokens.features
    focus_by = getattr(method, "focus_by", None)
    return MethodRun(
        label_of(method),
        asked.text,
        replace(selection, notes=(*selection.notes, *asked.report.notes)),
        asked.stages_ms,
        rho=None if focus_by == "volume" else getattr(method, "rho", None),
        mass=getattr(method, "focus_mass", "all"),
        covered=covered(selection, compared) if focus_by in ("volume", "distinct") else None,
        nearest=tuple(nearest.tolist()),
        likeness=tuple(likeness.tolist()),
        relevance=asked.report.relevance,
    )


def notes_of(runs: Sequence[MethodRun]) -> tuple[str, ...]:
    """What the methods noted, each note once."""
    return tuple(dict.fromkeys(f"{s.name}: {n}" for s in runs for n in s.selection.notes))


def covered(selection: Selection, features: Tensor | None) -> tuple[float, ...] | None:
    """Share of the priority mass that is covered after each focus token, in the order of choice (see
    `fsr.stages.focus.distinct_focus`), by the features [N, D] that it compared; None without priority."""
    if selection.priority is None or features is None:
        return None
    phi = torch.nan_to_num(selection.priority.double().cpu())
    unit = normalize(features.float(), dim=-1).cpu()
    # By stage, not by rank alone: tiles with budgets of their own count their ranks anew.
    place = selection.order.argsort(stable=True)
    focus = selection.rows[place][selection.stage[place] == Stage.FOCUS].cpu()
    gap = (1 - unit[focus] @ unit.T).clamp(0, 1).scatter(1, focus[:, None], 0.0).cummin(dim=0).values
    return tuple((1 - gap.double() @ phi / phi.sum().clamp(min=1e-12)).tolist())


def nearest_kept(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """For each of N tokens ([N, D]) the kept row most like it (long [N]; itself where it is kept) and their cosine."""
    unit = normalize(features.float(), dim=-1)
    kept = rows.to(unit.device)
    likeness, at = (unit @ unit[kept].T).max(dim=-1)
    nearest = kept[at]
    nearest[kept] = kept
    likeness = likeness.clamp(-1.0, 1.0)
    likeness[kept] = 1.0
    return nearest.cpu(), torch.nan_to_num(likeness).cpu()


def cropped_as_seen(processor: Any, image: Image.Image) -> Image.Image:
    """The part of the picture that reaches the model: some processors (CLIP's) cut out the middle."""
    crop = center_crop(processor)
    if crop is None:
        return image
    x0, y0, x1, y1 = crop.window(*image.size)
    left, top = round(x0 * image.width), round(y0 * image.height)
    # A pixel at least of pictures that are one pixel wide; black where the processor pads.
    return image.crop((left, top, max(left + 1, round(x1 * image.width)), max(top + 1, round(y1 * image.height))))
