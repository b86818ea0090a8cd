"""Which contenders run on a model at all, told before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence

from fsr.errors import FSRError
from fsr.evaluation.runner import Runner
from fsr.evaluation.trials import trials_of
from fsr.pipeline.pruner import prune

__all__ = ["runnable"]


def runnable(runner: Runner, names: Sequence[str], keep: int | float) -> tuple[list[str], dict[str, str]]:
    """Contenders that this model takes with the runner's source of relevance, and why the others are refused."""
    taken, refused = [], {}
    for name in names:
        method = trials_of(name, keep)[0].method
        try:
            prune(runner.model, method, processor=runner.processor, relevance=runner.relevance)
        except FSRError as error:
            refused[name] = str(error)
        else:
            taken.append(name)
    return taken, refused
