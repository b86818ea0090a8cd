"""The KV cache in calls and outputs of Transformers, which calls it `cache` since 5.24 and `past_key_values` before.

Users may go on writing either: newer releases take the old name, and only say that it is old.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["cache_in", "cache_of"]

NAMES = ("cache", "past_key_values")


def cache_in(kwargs: Mapping[str, Any]) -> Any:
    """The cache that a call is given, or None."""
    return next((kwargs[name] for name in NAMES if kwargs.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """The cache in a model's output, or None."""
    return next((found for name in NAMES if (found := getattr(output, name, None)) is not None), None)
