"""The containers in which Transformers hands around visual features: list, tuple or tensor `pooler_output`, deepstack.

Which one a class uses changes between releases, so nothing here asks which class it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import Tensor

__all__ = ["alike", "entries", "fresh", "is_pruned", "marked_pruned", "rebuild", "split_rows"]

# On outputs that `rebuild` made: features of kept tokens, as opposed to those of whole pictures.
PRUNED = "_fsr_pruned"


def entries(pooled: Any) -> list[Tensor]:
    """The entries of a `pooler_output`, each [N_i, D] or [T, n, D]: items of a list, rows of a tensor."""
    return [e for e in pooled]


def split_rows(pooled: Any, counts: Sequence[int]) -> list[Tensor]:
    """All rows of a `pooler_output` in order, cut again into units of `counts` rows (tiles joined into images, samples
    cut)."""
    rows = torch.cat([entry.flatten(0, -2) for entry in entries(pooled)])
    return list(rows.split(list(counts)))


def rebuild(
    output: Any,
    features: Sequence[Tensor],
    rows: Sequence[Tensor],
    counts: Sequence[int],
    samples: Sequence[int] | None = None,
) -> Any:
    """A new output of the same type with only the selected features: the old one would keep all tower states alive.

    features: per unit [K_i, D]; rows: per unit long [K_i] into its N_i tokens; counts: N_i; samples: per unit its
        batch row.
    The units of a row become one entry (releases before 5.23 repeat entries for beams one by one, which would mix up
    the pictures of a row). A tensor container becomes [rows, K, D], or [sum K, 1, D] if rows differ in K: it passes
    the models' count check, their flattening and beam expansion. Deepstack features (per layer) are gathered alike.
    """
    owners = list(range(len(features))) if samples is None else list(samples)

    def joined(units: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([u for u, o in zip(units, owners) if o == owner]) for owner in dict.fromkeys(owners)]

    pooled: Any = joined(features)
    if isinstance(output.pooler_output, Tensor):
        even = len({len(p) for p in pooled}) == 1
        pooled = torch.stack(pooled) if even else torch.cat(pooled).unsqueeze(1)
    extra = {}
    deep = getattr(output, "deepstack_features", None)
    if deep is not None:
        extra["deepstack_features"] = [
            joined([unit[r.to(unit.device)] for unit, r in zip(split_rows(layer, counts), rows)]) for layer in deep
        ]
    return marked_pruned(alike(output, pooler_output=pooled, **extra))


def alike(output: Any, **values: Any) -> Any:
    """A new output of the same type with these fields alone; None where the type insists on another."""
    needed = {f.name: None for f in fields(output) if f.default is MISSING and f.default_factory is MISSING}
    return type(output)(**{**needed, **values})


def marked_pruned(output: Any) -> Any:
    """The same output, known as one of kept tokens (see `is_pruned`)."""
    setattr(output, PRUNED, True)
    return output


def is_pruned(outputs: Any) -> bool:
    """Whether all of `mm_encoder_outputs` came out of `prepare` (copies included)."""
    return bool(outputs) and all(getattr(output, PRUNED, False) for output in outputs.values())


def fresh(output: Any) -> Any:
    """A shallow copy: beam search changes the containers it is given."""
    copied: dict[str, Any] = {}
    for key, value in output.items():
        copied[key] = [list(v) if isinstance(v, list) else v for v in value] if isinstance(value, list) else value
    made = alike(output, **copied)
    setattr(made, PRUNED, getattr(output, PRUNED, False))
    return made
