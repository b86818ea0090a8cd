"""Two rows in which nothing is pruned: no picture at all, and a picture that is shrunk before the vision tower.

Shrinking is the baseline of VTC-Bench (arXiv 2510.07143), where it beats many pruners: both sides times sqrt(K / N), so
that the pixels that are left are worth K tokens. The small picture goes through the model's own processor. One that
keeps native resolution makes about K tokens of it. One with a fixed size (`mini`: 144 x 144) enlarges it again: the
model sees a blurred picture in all its N tokens, the information of K patches at the price of N.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from fsr.adapters.base import Adapter
from fsr.evaluation.batches import Batch
from fsr.evaluation.question_set import QuestionSet
from fsr.evaluation.record import Outcome
from fsr.methods import Method
from fsr.pipeline.kv_cache import placeholders

__all__ = ["ask_shrunk", "ask_without_picture", "shrink"]

_FAR = 2.0  # the largest chordal distance: no token of the picture is covered


class Asker(Protocol):
    """What asks: a `Runner`."""

    questions: QuestionSet
    processor: Any

    @property
    def adapter(self) -> Adapter:
        """What knows the model."""

    def prompts(self, texts: list[str], pictures: list[Any] | None) -> dict[str, Any]:
        """Prompts of one batch, without pictures where there are none."""

    def generate(self, **ready: Any) -> Tensor:
        """Prompts and answers, long [B, L]."""


def shrink(picture: Image.Image, share: float) -> Image.Image:
    """The picture with `share` of its pixels (in (0, 1]), its shape kept; at least one pixel."""
    scale = share**0.5
    return picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC
    )


@torch.no_grad()
def ask_shrunk(runner: Asker, batch: Batch, method: Method) -> list[Outcome]:
    """The questions of a batch about pictures shrunk to the budget of `method`. `kept` is what the model was given."""
    small = []
    for item, unit in zip(batch.items, batch.seen.parts[0].units):
        picture = runner.questions.picture(runner.questions.items[item].scene)
        small.append(shrink(picture, method.budget(unit.count) / unit.count))
    return _ask(runner, batch, small)


@torch.no_grad()
def ask_without_picture(runner: Asker, batch: Batch) -> list[Outcome]:
    """What the text alone answers: the same questions without any visual token."""
    return _ask(runner, batch, None)


def _ask(runner: Asker, batch: Batch, pictures: list[Image.Image] | None) -> list[Outcome]:
    texts = [runner.questions.items[i].question.text for i in batch.items]
    prompts = runner.prompts(texts, pictures)
    kept = placeholders(runner.adapter, prompts["input_ids"])
    new = runner.generate(**prompts)[:, prompts["input_ids"].shape[1] :]
    said = runner.processor.batch_decode(new, skip_special_tokens=True)
    return [
        Outcome(item, text.strip(), k, 0, 0, None, _FAR, None, None, None, None)
        for item, text, k in zip(batch.items, said, kept)
    ]
