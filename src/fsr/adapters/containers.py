"""The containers in which Transformers hands around visual features: list, tuple or tensor `pooler_output`, deepstack.

Which one a class uses changes between releases, so nothing here asks which class it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["entries", "fresh", "rebuild", "split_rows"]


def entries(pooled: Any) -> list[Tensor]:
    """The entries of a `pooler_output`, each [N_i, D]: items of a list or tuple, or rows of a [n, N, D] tensor."""
    return [e for e in pooled]


def split_rows(pooled: Any, counts: Sequence[int]) -> list[Tensor]:
    """All rows of a `pooler_output` in order, cut again into units of `counts` rows (tiles joined into images, samples
    cut)."""
    rows = pooled.flatten(0, -2) if isinstance(pooled, Tensor) else torch.cat(list(pooled))
    return list(rows.split(list(counts)))


def rebuild(output: Any, features: Sequence[Tensor], rows: Sequence[Tensor], counts: Sequence[int]) -> Any:
    """A new output of the same type with only the selected features: the old one would keep all tower states alive.

    features: per unit [K_i, D]; rows: per unit long [K_i] into its N_i tokens; counts: N_i.
    A tensor container becomes [sum K, 1, D]: it passes the models' count check, their flattening and beam expansion for
    any mix of K. Deepstack features (per layer, per unit) are gathered at the same rows.
    """
    pooled: Any = list(features)
    if isinstance(output.pooler_output, Tensor):
        pooled = torch.cat(pooled).unsqueeze(1)
    extra = {}
    deep = getattr(output, "deepstack_features", None)
    if deep is not None:
        extra["deepstack_features"] = [
            [unit[r.to(unit.device)] for unit, r in zip(split_rows(layer, counts), rows)] for layer in deep
        ]
    return type(output)(pooler_output=pooled, **extra)


def fresh(output: Any) -> Any:
    """A shallow copy: beam search changes the containers it is given."""
    copied: dict[str, Any] = {}
    for key, value in output.items():
        copied[key] = [list(v) if isinstance(v, list) else v for v in value] if isinstance(value, list) else value
    return type(output)(**copied)
