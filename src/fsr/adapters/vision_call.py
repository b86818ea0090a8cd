"""What a model's vision side says about pixels it cannot take becomes one error with a hint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fsr.errors import FeatureError, FSRError

__all__ = ["call_vision"]

LIBRARIES = ("torch", "transformers", "transformers_modules", "einops", "fsr")


def call_vision(run: Callable[[], Any], given: dict[str, Any]) -> Any:
    """Run the model's own encoding of `given`.

    Raises:
        FeatureError: pixels or sizes that do not fit the model.
    """
    try:
        return run()
    except (FSRError, torch.OutOfMemoryError):
        raise
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        if "allocate memory" in str(error) or not _of_libraries(error):
            raise  # memory of the CPU, or a hook of the user's own
        shapes = ", ".join(f"{n} {tuple(v.shape)}" for n, v in given.items() if isinstance(v, Tensor))
        first = " ".join(str(error).split())[:200]
        raise FeatureError(
            f"the vision side cannot take these inputs ({shapes}): {first}: use the processor of this model."
        ) from error


def _of_libraries(error: Exception) -> bool:
    """Whether it was raised by what runs the model, not by somebody's code that is hooked into it."""
    at: TracebackType | None = error.__traceback__
    raiser = ""
    while at is not None:
        package = str(at.tb_frame.f_globals.get("__name__", "")).split(".")[0]
        raiser = raiser if package in sys.stdlib_module_names else package
        at = at.tb_next
    return raiser in LIBRARIES
