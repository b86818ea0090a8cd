"""The call that is running in this thread (or task): what tells our own forwards from those that go past pruning."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fsr.pipeline.report import Report

__all__ = ["OpenCall", "named", "running"]

_running: ContextVar[OpenCall | None] = ContextVar("fsr_running", default=None)


@dataclass
class OpenCall:
    """One `generate`, or one `forward`, of a pruned model.

    report: what `last` becomes when it is done; None for calls without pictures of their own.
    single: one forward. finished: the report is complete (methods inside the language model complete it).
    reached: the kept features arrived at the inner model. deltas: see `kv_cache.rope_deltas`.
    """

    owner: Any
    report: Report | None = None
    single: bool = False
    finished: bool = True
    reached: bool = False
    deltas: Tensor | None = None
    earlier: OpenCall | None = None

    def take(self, report: Report) -> None:
        """The completed report."""
        self.report, self.finished = report, True

    def begin(self) -> OpenCall:
        """From now on this is the running call."""
        self.earlier = _running.get()
        _running.set(self)
        return self

    def end(self) -> None:
        """It is no more."""
        _running.set(self.earlier)


def running(owner: Any) -> OpenCall | None:
    """The running call of this pruner, or None."""
    call = _running.get()
    return call if call is not None and call.owner is owner else None


def named(
    function: Callable[..., Any], own: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """All arguments of a call by name, and the names of those that were given by place.

    function: what is called, anyone's wrapper perhaps: places that it takes as `*args`, or under names of its own, have
    the names of `own`, the method of the class (with `self`).
    """
    if not args:
        return dict(kwargs), []
    names = list(inspect.signature(own).parameters)[1:]
    try:
        theirs = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        theirs = []
    by_place = [p.name for p in theirs if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    known = {*names, "input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "labels"}
    mine = [n if n in known else names[i] for i, n in enumerate(by_place) if n in known or i < len(names)]
    places = (mine + names[len(mine) :])[: len(args)]
    return {**dict(zip(places, args)), **kwargs}, places
