"""Which questions a pruned prompt answers right, and how two ways to prune compare on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fsr.evaluation.score import plain
from fsr.evaluation.statistics import mcnemar

__all__ = ["answered_right", "compared", "said_right"]


def answered_right(model: Any, processor: Any, ready: Any, truths: Sequence[str]) -> list[bool]:
    """Greedy answers to a prepared batch against the true ones, row by row."""
    new = model.generate(**ready, max_new_tokens=4, do_sample=False)[:, ready["input_ids"].shape[1] :]
    return said_right(processor, new, truths)


def said_right(processor: Any, new: Any, truths: Sequence[str]) -> list[bool]:
    """The same of tokens that were generated already, [rows, length]."""
    said = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [plain(answer) == plain(truth) for answer, truth in zip(said, truths, strict=True)]


def compared(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Questions that only the first, and only the second, answers right, and exact McNemar's p."""
    gains, losses = int((first & ~second).sum()), int((~first & second).sum())
    return gains, losses, mcnemar(gains, losses)
