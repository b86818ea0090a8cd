"""Methods inside the language model in the comparison: the same prompts and encoded pictures, drops while it runs.

Their budget is what the last layer holds; every layer before the drop holds more, so a row of such a method is not at
equal cost (`InLLMMethod.layer_average` says what it costs). The kept tokens of an outcome are those of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fsr.methods import Method
from fsr.methods.parts import KeepAll, split
from fsr.pipeline.encode import EncodedPrompt
from fsr.pipeline.prepare import prepare
from fsr.pipeline.pruner import prune
from fsr.pipeline.report import Report, after_drops
from fsr.tokens import Selection

__all__ = ["before", "generate_in_llm"]


def before(method: Any) -> Method:
    """What prunes in front of the language model: the method itself, the first part of a chain, or nothing at all."""
    before_llm, _ = split(method)
    return before_llm or KeepAll()


def generate_in_llm(
    model: Any,
    method: Any,
    prompts: dict[str, Any],
    questions: list[str],
    positions: Any,
    encoded: EncodedPrompt,
    generate: Callable[..., torch.Tensor],
) -> tuple[torch.Tensor, list[Selection]]:
    """New tokens [B, T] and, per picture, the tokens that the last layer still held."""
    ready = prepare(model, before(method), prompts, questions, positions=positions, encoded=encoded)
    reports: list[Report] = []
    with prune(model, method, positions=positions) as pruned:
        in_llm = pruned.in_llm
        if in_llm is None:
            out = generate(**ready)
        else:
            call = in_llm.begin(ready.report, reports.append)
            try:
                out = generate(**ready)
            finally:
                in_llm.end(call)
    drops = reports[0].in_llm.drops if reports and reports[0].in_llm else ()
    return out[:, ready["input_ids"].shape[1] :], list(after_drops(ready.report.selections, drops))
