"""One worker of `fsr batch`: loads the model once, answers a batch per call and writes its part itself.

What is wrong with one row is that row's answer: a picture that cannot be read, an empty question, a prompt that the
processor refuses, features that cannot be selected from. Such a row never harms the others of its batch. What is wrong
with the model, the method or the machine (CUDA out of memory) stops the job, whose finished parts stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, time
from typing import Any

import torch
from PIL import Image

from fsr.asking.chat import chat_batch
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.errors import FeatureError, FSRError, PictureError, QuestionError, UsageError
from fsr.pipeline.pruner import prune
from fsr.serving.batch.inputs import Row
from fsr.serving.batch.job import SETTINGS, Job
from fsr.serving.batch.pictures import Pictures
from fsr.serving.batch.results import part_file, write_part

__all__ = ["Reply", "Worker"]


@dataclass(frozen=True)
class Reply:
    """One row's answer, or its error; tokens as in `results.SCHEMA`."""

    answer: str | None = None
    error: str | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None
    n_focus: int | None = None


class Worker:
    """Callable for Ray: `{"rows": JSON}` in, `{"rows": count, "began": s, "ended": s, "refused": text}` out.

    Answers go to the disk. The method is tried on the bundled scene at once, so that what does not fit the model shows
    before the first row; it is said in answer to the first call, because Ray buries an exception in its own.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.pictures = Pictures(job.source)
        self.refused = ""
        try:
            if not (job.out / SETTINGS).is_file():
                raise UsageError(
                    f"a worker does not see {str(job.out)!r}: give --out a folder on storage that all machines share."
                )
            self.model, self.processor = load(job.model, job.device)
            self.pruned = prune(self.model, job.method, processor=self.processor, relevance=job.relevance).apply()
            some = 1 if job.each is None else len(job.each.values)
            self.together([[bundled_scene()] * some], ["what is this?"])
        except FSRError as error:
            self.refused = str(error)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answer and write a batch. A part that is there was written by a worker that died before it could say so."""
        rows = [Row(**row) for row in json.loads(batch["rows"])]
        began, file = time(), part_file(self.job.out, rows)
        if not self.refused and not file.exists():
            write_part(file, self.answers(rows))
        return {"rows": len(rows), "began": began, "ended": time(), "refused": self.refused}

    def answers(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """One record of `SCHEMA` per row, in their order."""
        began = perf_counter()
        replies: dict[str, Reply] = {}
        ready: list[tuple[Row, list[Image.Image]]] = []
        for row in rows:
            try:
                pictures = self.pictures.open(row)
                if self.job.each is not None:
                    self.job.each.check(len(pictures))
                if not (row.question or "").strip():
                    raise QuestionError("the question is empty: write what you want to know about the picture.")
                ready.append((row, pictures))
            except FSRError as error:
                replies[row.id] = Reply(error=str(error))
        replies |= self.apart(ready)
        same: dict[str, Any] = {"method": " | ".join(m.name for m in self.job.methods), "keep": self.job.keep}
        same |= {"seconds": (perf_counter() - began) / len(rows)}
        return [
            {"id": row.id, "image": row.image, "question": row.question, **vars(replies[row.id]), **same}
            for row in rows
        ]

    def apart(self, ready: Sequence[tuple[Row, list[Image.Image]]]) -> dict[str, Reply]:
        """Replies by id: all in one call if that works, else each row alone, to find the one to blame."""
        if not ready:
            return {}
        try:
            replies = self.together([pictures for _, pictures in ready], [row.question or "" for row, _ in ready])
            return {row.id: reply for (row, _), reply in zip(ready, replies)}
        except (PictureError, FeatureError, QuestionError) as error:
            if len(ready) == 1:
                return {ready[0][0].id: Reply(error=str(error))}
        found: dict[str, Reply] = {}
        for one in ready:
            found |= self.apart([one])
        return found

    def together(self, pictures: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> list[Reply]:
        """One call of the model's own `generate`, prompts padded on the left."""
        made = chat_batch(self.processor, pictures, questions)
        inputs = {k: v.to(self.model.device) if isinstance(v, torch.Tensor) else v for k, v in made.items()}
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, question=list(questions), max_new_tokens=self.job.max_new_tokens, do_sample=False
            )
        report = self.pruned.last
        if report is None or report.rows != tuple(i for i, some in enumerate(pictures) for _ in some):
            raise UsageError(f"prompts of {self.job.model!r} do not hold their pictures: check its chat template.")
        texts = self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        counts = [[0, 0, 0] for _ in questions]
        for row, entered, last in zip(report.rows, report.selections, report.at_last_layer):
            counts[row] = [a + b for a, b in zip(counts[row], (entered.total, last.kept, entered.n_focus))]
        return [Reply(text.strip(), None, *count) for text, count in zip(texts, counts)]
