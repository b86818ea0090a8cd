"""Taking a method apart: what prunes before the language model, and what prunes inside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from fsr.errors import UsageError
from fsr.methods.base import Method, Picks
from fsr.methods.chain import Chain
from fsr.methods.downscale import Downscale
from fsr.methods.in_llm import InLLMMethod
from fsr.methods.picture_budgets import Keep, KeepFor
from fsr.tokens import Selection, VisualTokens

__all__ = ["KeepAll", "label_of", "split", "without_downscale"]


@dataclass(frozen=True)
class KeepAll(Method):
    """Keeps every token: what stands in front of the language model when only methods inside it prune."""

    name = "whole"
    paper = "none"

    keep: Keep | Sequence[Keep] | KeepFor = 1.0

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """Never reached with keep = 1.0; a smaller budget is refused."""
        raise UsageError("'whole' keeps every token: choose a method that prunes.")

    def _whole(self, tokens: VisualTokens, keep: Keep) -> Selection:
        """Without the note that nothing was pruned: something will be, later."""
        return replace(super()._whole(tokens, keep), notes=())


def without_downscale(method: Any) -> tuple[Downscale | None, Any]:
    """The stage in front of the vision tower (or None), and the rest: `KeepAll` if there is no other."""
    if isinstance(method, Downscale):
        return method, KeepAll()
    if isinstance(method, Chain):
        return method.downscale, replace(method, downscale=None)
    return None, method


def split(method: Any) -> tuple[Method | None, tuple[InLLMMethod, ...]]:
    """The part before and the part inside the language model.

    Raises:
        UsageError: not a method at all, or a `Downscale`, which only `prune` can run.
    """
    if isinstance(method, Downscale) or (isinstance(method, Chain) and method.downscale is not None):
        raise UsageError("Downscale turns the processor down, which only prune(model, ..., processor=...) does.")
    if isinstance(method, Chain):
        return method.before_llm, method.in_llm
    if isinstance(method, InLLMMethod):
        return None, (method,)
    if isinstance(method, Method):
        return method, ()
    raise UsageError(f"{method!r} is no pruning method: give one, for example FSR(keep=64), or several chained with |.")


def label_of(method: Any) -> str:
    """The name with the options that are not the usual ones, as the command line takes them: `fsr:alpha=0`."""
    if not isinstance(method, Method | InLLMMethod):
        return str(getattr(method, "name", method))
    changed = [
        f"{f.name}={value if isinstance(value, str) else json.dumps(value, default=repr)}"
        for f in fields(method)
        if f.name != "keep" and (value := getattr(method, f.name)) != f.default
    ]
    return ":".join([method.name, *changed])
