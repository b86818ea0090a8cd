"""MME's perception and cognition as the one number that the papers print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["process_results"]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """lmms-eval's two metrics, and `mme_score` over all fourteen subtasks."""
    from lmms_eval.tasks.mme.utils import mme_process_results

    parts = mme_process_results(doc, results)
    (row,) = parts.values()
    return {**parts, "mme_score": row}
