"""Ask a model one question about one picture and keep the clock: what `fsr ask`, the report and the demo share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from fsr.asking.chat import Pictures, chat_batch, chat_inputs, listed
from fsr.errors import UsageError, counted
from fsr.pipeline.prepare import Report
from fsr.pipeline.pruner import prune
from fsr.tokens import Selection

__all__ = ["Answer", "answer", "chat_batch", "chat_inputs"]


@dataclass(frozen=True)
class Answer:
    """text: the model's words. report: None for an unpruned run. stages_ms: milliseconds by stage, "total" included."""

    text: str
    report: Report | None
    stages_ms: Mapping[str, float]

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What the last decoder layer held of each picture; empty for an unpruned run."""
        return self.report.at_last_layer if self.report else ()

    @property
    def selection(self) -> Selection | None:
        """That of the only (or first) picture."""
        return self.selections[0] if self.report else None


def answer(
    model: Any,
    processor: Any,
    image: Pictures,
    question: str,
    method: Any = None,
    *,
    relevance: Any = "auto",
    max_new_tokens: int = 32,
) -> Answer:
    """Greedy answer from the tokens that `method` keeps, or from all of them (None), about a picture or several.

    Stages: preprocess, vision_tower, saliency, text_tower, selection, generate (prefill and decoding; the vision
    tower too where nothing is pruned), total.

    Raises:
        UsageError: the prompt does not hold the pictures. Everything that `chat_batch` and `prune` raise.
    """
    began = perf_counter()
    inputs = {
        k: v.to(model.device) if isinstance(v, torch.Tensor) else v
        for k, v in chat_inputs(processor, image, question).items()
    }
    ready = perf_counter()
    block = nullcontext() if method is None else prune(model, method, processor=processor, relevance=relevance)
    with torch.inference_mode(), block as pruned:
        extra = {} if method is None else {"question": question}
        out = model.generate(**inputs, **extra, max_new_tokens=max_new_tokens, do_sample=False)
    done = perf_counter()
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    report = pruned.last if pruned is not None else None
    count = len(listed(image))
    if report is not None and len(report.selections) != count:
        raise UsageError(
            f"the prompt holds {len(report.selections)} of {counted(count, 'picture')}: the model's chat "
            "template dropped some."
        )
    stages = {"preprocess": 1e3 * (ready - began)}
    inside = {} if report is None else {k: v for k, v in report.timings.items() if k != "total"}
    stages |= {k: v for k, v in inside.items() if k != "rest"}
    stages["generate"] = 1e3 * (done - ready) - sum(v for k, v in inside.items() if k != "rest")
    stages["total"] = 1e3 * (done - began)
    return Answer(text, report, {k: round(v, 3) for k, v in stages.items()})
