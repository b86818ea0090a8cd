"""The embedded benchmark as a task: its rows, and the score that `fsr compare` gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fsr.evaluation.question_set import QuestionSet
from fsr.evaluation.score import plain

__all__ = ["doc_to_visual", "process_results", "write_rows"]


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The scene."""
    return [doc["image"].convert("RGB")]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Right or wrong by the rule of `fsr compare`, under the metric of all kinds and that of its own kind."""
    right = float(plain(results[0]) == plain(doc["answer"]))
    return {"accuracy": right, f"accuracy_{doc['kind']}": right}


def write_rows(questions: QuestionSet, file: Path) -> None:
    """One parquet row per question: picture (PNG), question, answer, kind, number of the scene."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Pictures

    items = questions.items
    columns = {
        "question_id": list(range(len(items))),
        "image": [questions.picture(item.scene) for item in items],
        "question": [item.question.text for item in items],
        "answer": [item.question.answer for item in items],
        "kind": [item.question.kind for item in items],
        "scene": [item.scene for item in items],
    }
    kinds = {name: Value("int64" if name in ("question_id", "scene") else "string") for name in columns}
    Dataset.from_dict(columns, Features({**kinds, "image": Pictures()})).to_parquet(str(file))
