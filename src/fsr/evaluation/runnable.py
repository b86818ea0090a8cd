"""Which contenders run on a model at all, told before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from fsr.errors import FSRError
from fsr.evaluation.poor_pictures import shrink
from fsr.evaluation.runner import Runner
from fsr.evaluation.trials import SHRUNK, trials_of
from fsr.pipeline.kv_cache import placeholders
from fsr.pipeline.pruner import prune

__all__ = ["runnable"]


def runnable(runner: Runner, names: Sequence[str], keeps: Sequence[int | float]) -> tuple[list[str], dict[str, str]]:
    """Contenders that this model takes with the runner's source of relevance, and why the others are refused."""
    taken, refused = [], {}
    for name in names:
        try:
            if name == SHRUNK:
                for keep in keeps:
                    _shrink_all(runner, keep)
            else:
                method = trials_of(name, keeps[0])[0].method
                prune(runner.model, method, processor=runner.processor, relevance=runner.relevance)
        except FSRError as error:
            refused[name] = str(error)
        else:
            taken.append(name)
    return taken, refused


def _shrink_all(runner: Runner, keep: int | float) -> None:
    """One picture of every size, shrunk to its budget, goes through the model's processor.

    Raises:
        FSRError: that of the processor; some know no pictures below a size.
    """
    method = trials_of(SHRUNK, keep)[0].method
    by_size: dict[tuple[int, int], Image] = {}
    for scene in {item.scene for item in runner.questions.items}:
        picture = runner.questions.picture(scene)
        by_size.setdefault(picture.size, picture)
    for picture in by_size.values():
        whole = placeholders(runner.adapter, runner.prompts([""], [picture])["input_ids"])[0]
        runner.prompts([""], [shrink(picture, method.budget(whole) / whole)])
