"""Results that lmms-eval saved: files put together into runs of one model with one method and budget.

Reads `*_results.json` and, beside it, `*_samples_TASK.jsonl`; needs neither lmms-eval nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsr.errors import UsageError

__all__ = ["Run", "TaskResult", "differing", "read_runs"]

# Arguments that change speed, not answers: runs that differ in these alone belong together.
_SPEED = frozenset({"batch_size", "device", "max_batch_size"})
_RESULTS = "_results.json"


@dataclass(frozen=True)
class TaskResult:
    """One task of a run.

    metrics: by name, filter removed, what lmms-eval calls N/A left out; standard errors as `NAME_stderr`.
    questions: how many were asked. samples: the file with single answers, or None.
    """

    metrics: Mapping[str, float]
    questions: int
    samples: Path | None

    def values(self, metric: str) -> list[Any]:
        """What was logged under a metric, in the order of the questions."""
        if self.samples is None:
            return []
        with self.samples.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows.sort(key=lambda row: row["doc_id"])
        return [row[metric] for row in rows if metric in row]


@dataclass
class Run:
    """settings: the model's arguments, those of speed left out. pictures, total, kept: counts over all its files
    (kept per layer); 0 where another model made them. partial: a `--limit` was set."""

    settings: dict[str, Any]
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    partial: bool = False
    pictures: float = 0.0
    total: float = 0.0
    kept: float = 0.0

    @property
    def pretrained(self) -> str:
        """The checkpoint."""
        return str(self.settings.get("pretrained", "mini"))

    @property
    def unpruned(self) -> bool:
        """True for the baseline."""
        return str(self.settings.get("method", "fsr")).lower() == "none"

    def label(self, shown: Collection[str]) -> str:
        """Method and, of what was set, the names in `shown`."""
        method = str(self.settings.get("method", "fsr")).lower()
        name = "unpruned" if self.unpruned else method
        rest = [f"{k}={v}" for k, v in sorted(self.settings.items()) if k in shown and k != "method"]
        return f"{name} ({', '.join(rest)})" if rest else name


def differing(runs: Sequence[Run]) -> set[str]:
    """Names of settings that tell the runs apart, and always the budget."""
    names = {name for run in runs for name in run.settings}
    return {n for n in names if len({str(run.settings.get(n)) for run in runs}) > 1} | {"keep"}


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """All runs in these files and folders (searched for `*_results.json`).

    Raises:
        UsageError: nothing found, a file that lmms-eval did not write, or one task twice in one run.
    """
    runs: dict[str, Run] = {}
    for file in _files(paths):
        data = _load(file)
        settings = {k: v for k, v in _arguments(data["config"]["model_args"]).items() if k not in _SPEED}
        run = runs.setdefault(json.dumps(settings, sort_keys=True), Run(settings))
        run.partial |= data["config"].get("limit") not in (None, -1)
        spent = data.get("throughput", {})
        if "avg_pictures" in spent:  # written by the models of this package
            pictures = spent["avg_pictures"]
            run.pictures += pictures
            run.total += pictures * spent["avg_visual_tokens"]
            run.kept += pictures * spent["avg_visual_tokens_per_layer"]
        for task, metrics in data["results"].items():
            if task not in data["n-samples"]:  # a group: its members are there too
                continue
            if task in run.tasks:
                raise UsageError(
                    f"{file} has {task} of {run.label(settings)}, and so has another file: give one of them."
                )
            samples = file.with_name(f"{file.name[: -len(_RESULTS)]}_samples_{task}.jsonl")
            run.tasks[task] = TaskResult(
                {k.partition(",")[0]: float(v) for k, v in metrics.items() if isinstance(v, int | float)},
                int(data["n-samples"][task]["effective"]),
                samples if samples.is_file() else None,
            )
    return list(runs.values())


def _files(paths: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        here = sorted(path.rglob(f"*{_RESULTS}")) if path.is_dir() else [path]
        if not here or not all(file.is_file() for file in here):
            raise UsageError(f"no *{_RESULTS} at {str(path)!r}: give what lmms-eval wrote to its --output_path.")
        found += here
    return list(dict.fromkeys(file.resolve() for file in found))


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({type(error).__name__}): give a results file.") from error
    parts = [data.get(name) for name in ("config", "results", "n-samples")] if isinstance(data, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or "model_args" not in data["config"]:
        raise UsageError(f"{file} is no results file of lmms-eval 0.7: it lacks config, results or n-samples.")
    return data


def _arguments(given: Any) -> dict[str, Any]:
    """`a=1,b=2`, or the mapping that `simple_evaluate` was given."""
    if isinstance(given, Mapping):
        return {str(k): v for k, v in given.items()}
    pairs = [part.partition("=") for part in str(given or "").split(",") if part.strip()]
    return {name.strip(): value.strip() for name, _, value in pairs}
