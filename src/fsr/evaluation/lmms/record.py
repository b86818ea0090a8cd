"""What a run of lmms-eval leaves beside its own results: which tokens there really were, and with what they were made.

lmms-eval saves the argument string of a model and per-question token counts, no more. Here `Counts` adds the visual
tokens to the latter (`--log_samples`), `Ledger` collects all of a run, and `folder_of` finds the `--output_path`.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from lmms_eval.api.instance import TokenCounts

from fsr.pipeline.report import Report
from fsr.version import __version__

__all__ = ["Counts", "Ledger", "counts_of", "folder_of", "versions"]


@dataclass
class Counts(TokenCounts):
    """Token counts of one question.

    visual_tokens: N over its pictures and clips. visual_tokens_kept: what the last decoder layer holds of them.
    visual_tokens_per_layer: mean over the decoder layers (the same, unless a method prunes inside the language model).
    pictures: how many.
    """

    visual_tokens: int = 0
    visual_tokens_kept: int = 0
    visual_tokens_per_layer: float = 0.0
    pictures: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What lmms-eval writes into its samples."""
        names = ("visual_tokens", "visual_tokens_kept", "visual_tokens_per_layer", "pictures")
        return {**super().to_dict(), **{name: getattr(self, name) for name in names}}


def counts_of(report: Report | None, rows: int) -> list[Counts]:
    """Per batch row, from what pruning reported; report: None where no row has a picture."""
    counts = [Counts() for _ in range(rows)]
    if report is None:
        return counts
    for picture, (selection, row) in enumerate(zip(report.selections, report.rows)):
        held = [(0, selection.kept)]  # (first layer, tokens from there on)
        depth = 1
        if report.in_llm is not None:
            depth = report.in_llm.depth
            held += [(drop.layer, len(drop.rows[picture])) for drop in report.in_llm.drops]
        ends = [*(first for first, _ in held[1:]), depth]
        counts[row].pictures += 1
        counts[row].visual_tokens += selection.total
        counts[row].visual_tokens_kept += held[-1][1]
        counts[row].visual_tokens_per_layer += sum(n * (end - first) for (first, n), end in zip(held, ends)) / depth
    return counts


@dataclass
class Ledger:
    """Everything that a run should be able to say later. settings: what the model was built with."""

    settings: dict[str, Any]
    prompts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, list[Counts]] = field(default_factory=dict)

    def add(self, task: str, prompt: str, counts: Sequence[Counts]) -> None:
        """A batch of `task`; its first prompt is kept, as it was rendered."""
        self.prompts.setdefault(task, prompt)
        self.counts.setdefault(task, []).extend(counts)

    def means(self, task: str | None = None) -> dict[str, float]:
        """Over one task or all: pictures, and visual tokens per picture before, kept, on average over the layers."""
        some = [c for name, counts in self.counts.items() if task in (None, name) for c in counts]
        pictures = sum(c.pictures for c in some)
        if not pictures:
            return {}
        names = ("visual_tokens", "visual_tokens_kept", "visual_tokens_per_layer")
        return {"pictures": pictures, **{name: sum(getattr(c, name) for c in some) / pictures for name in names}}

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        tasks = {
            task: {
                "questions": len(counts),
                **self.means(task),
                "kept_histogram": dict(sorted(Counter(c.visual_tokens_kept for c in counts).items())),
                "first_prompt": self.prompts[task],
            }
            for task, counts in self.counts.items()
        }
        return {**self.settings, "versions": versions(), "tasks": tasks}

    def write(self, folder: Path, rank: int) -> Path:
        """One file per process and run."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{time.strftime('%Y%m%d_%H%M%S')}_fsr_run_{rank}.json"
        file.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return file


def versions() -> dict[str, str]:
    """Of everything that can change an answer."""
    return {
        "fsr": __version__,
        "lmms_eval": version("lmms_eval"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def folder_of(requests: Sequence[Any]) -> Path | None:
    """`--output_path` of the command line: lmms-eval gives it to tasks (`task.args`), and requests carry a method of
    theirs. None without a command line (`simple_evaluate`)."""
    task = getattr(requests[0].args[1], "__self__", None) if requests else None
    path = getattr(getattr(task, "args", None), "output_path", None)
    return Path(path) if path else None
