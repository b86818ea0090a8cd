"""The words of requests and of the engine's settings: ours, those that other projects use, and near misses.

`image_pruning_rate` is the share that is removed (0.9 keeps a tenth, 0 nothing is pruned); `image_pruning_method` is
the method's name. A misspelt argument would otherwise go to the model's own processor, which ignores what it does not
know, and the pictures would be pruned by the default without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from fsr.errors import BudgetError, UsageError
from fsr.methods.budget import check_keep

__all__ = [
    "KEEP",
    "METHOD",
    "QUESTION",
    "QUESTION_FOR",
    "RATE",
    "budget_of",
    "named_method",
    "others",
    "refuse_near_misses",
]

KEEP, QUESTION, QUESTION_FOR = "fsr_keep", "fsr_question", "fsr_question_for"
RATE, METHOD = "image_pruning_rate", "image_pruning_method"
OURS = (KEEP, QUESTION, QUESTION_FOR, RATE, METHOD)
# What people write instead, beside slips of the finger.
_MEANT = {name: name for name in OURS} | {
    "keep": KEEP, "keep_tokens": KEEP, "fsr_tokens": KEEP, "fsr_num_tokens": KEEP, "fsr_budget": KEEP,
    "question": QUESTION, "fsr_query": QUESTION, "fsr_prompt": QUESTION, "question_for": QUESTION_FOR,
    "pruning_rate": RATE, "image_prune_rate": RATE, "fsr_rate": RATE, "pruning_method": METHOD, "fsr_method": METHOD,
}  # fmt: skip


Budget = int | float


def budget_of(given: Mapping[str, Any], name: str, default: Any) -> Any:
    """The budget asked for by `name` or by `image_pruning_rate`; 0 for off, a list for one per picture.

    Raises:
        BudgetError: out of range, or both given and not the same.
    """
    asked = [_each(given[name], lambda keep: _checked(keep, name))] if name in given else []
    if RATE in given:
        asked.append(_each(given[RATE], _kept_at))
    if len(asked) == 2 and asked[0] != asked[1]:
        raise BudgetError(f"{name}={given[name]!r} and {RATE}={given[RATE]!r} contradict each other: give one of them.")
    return asked[0] if asked else default


def _each(value: Any, check: Callable[[Any], Budget]) -> Budget | list[Budget]:
    return [check(v) for v in value] if isinstance(value, list | tuple) else check(value)


def named_method(given: Mapping[str, Any], name: str, default: str) -> str:
    """The method asked for by `name` or by `image_pruning_method`.

    Raises:
        UsageError: both given and not the same.
    """
    asked = [str(given[n]) for n in (name, METHOD) if given.get(n) is not None]
    if len(set(asked)) > 1:
        raise UsageError(f"{name}={asked[0]} and {METHOD}={asked[1]} contradict each other: give one of them.")
    return asked[0] if asked else default


def refuse_near_misses(given: Mapping[str, Any]) -> None:
    """Raise for arguments of a request that mean ours and are not.

    Raises:
        UsageError: an unknown argument that begins with fsr_, a misspelt one, or one of ours inside another.
    """
    for name, value in given.items():
        if name in OURS:
            continue
        meant = nearest(name)
        if meant or name.lower().startswith("fsr"):
            hint = f"did you mean {meant}?" if meant else f"use {', '.join(OURS)}."
            raise UsageError(f"mm_processor_kwargs: unknown {name}: {hint}")
        if isinstance(value, Mapping) and (inside := [n for n in value if n in OURS or nearest(str(n))]):
            raise UsageError(f"mm_processor_kwargs: {inside[0]} stands inside {name}: give it beside, not inside.")


def nearest(name: str) -> str | None:
    """The argument of ours that was probably meant, or None."""
    low = name.lower().replace("-", "_")
    found = get_close_matches(low, _MEANT, n=1, cutoff=0.8)
    return _MEANT[found[0]] if found else None


def others(arguments: Mapping[str, object]) -> dict[str, object]:
    """`mm_processor_kwargs` without ours: what the model's own processor may see."""
    return {name: value for name, value in arguments.items() if not name.startswith("fsr") and name not in OURS}


def _checked(keep: Any, name: str) -> Budget:
    if keep == 0 and not isinstance(keep, bool):
        return 0
    try:
        check_keep(keep)
    except BudgetError as error:
        raise BudgetError(f"{name}: {error} 0 leaves the pictures whole.") from error
    return keep


def _kept_at(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise BudgetError(f"{RATE}={rate!r}: give the share of tokens to remove, from 0 (nothing) to below 1.")
    # 1 - 0.9 is a little less than 0.1, and the floor of its product one token less.
    return round(1 - rate, 12) if rate else 0
