"""POPE as LLaVA counts it. lmms-eval's own task takes "Yes." for wrong, and its yes-ratio is that of the truth, not of
the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["METRICS", "process_results", "said", "yes_ratio"]

METRICS = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio")


def said(text: str) -> str:
    """yes or no: no if the first sentence has one of the words No, no and not, else yes (commas do not count)."""
    words = text.split(".")[0].replace(",", "").split()
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What lmms-eval's aggregations of POPE read, once per metric."""
    truth, answer = doc["answer"].strip().lower(), said(results[0])
    row = {
        "question_id": doc["question_id"],
        "score": float(answer == truth),
        "prediction": answer,
        "ground_truth": truth,
    }
    return {metric: row for metric in METRICS}


def yes_ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Share of answers that are yes."""
    return sum(row["prediction"] == "yes" for row in rows) / len(rows)
