"""The resolution at which a processor shows pictures to the vision tower: turned down inside a block, then as it was.

Two kinds of native resolution are known, each by the processor's own setting:

| processor | setting | what it bounds |
|---|---|---|
| Qwen's (`image_grid_thw`) | `size["longest_edge"]` | height times width |
| Gemma 4's (`image_position_ids`) | `max_soft_tokens`, one of five values | tokens of (patch times pool)^2 pixels |

Every other processor scales pictures to fixed sizes: those are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsr.errors import UnsupportedModelError, UsageError
from fsr.pipeline.inputs import check_processor

__all__ = ["Resolution"]

SOFT_TOKENS = (70, 140, 280, 560, 1120)


class Resolution:
    """An upper bound on the pixels of a picture, for one processor.

    Raises:
        UsageError: no processor. UnsupportedModelError: its pictures have fixed sizes, or cannot be that small.
    """

    def __init__(self, processor: Any, pixels: int) -> None:
        if processor is None:
            raise UsageError("Downscale works through the processor: pass processor=... to prune().")
        check_processor(processor)
        self.images: Any = getattr(processor, "image_processor", processor)
        self.pixels = pixels
        names = set(getattr(self.images, "model_input_names", ()))
        self.patch = int(getattr(self.images, "patch_size", 0) or 0)
        if "image_grid_thw" in names and hasattr(self.images, "merge_size"):
            side = self.patch * int(self.images.merge_size)
            if pixels < side * side:
                raise UnsupportedModelError(f"Downscale(pixels={pixels}): one token of this model is {side} x {side}.")
            size = dict(self.images.size)
            size["longest_edge"] = min(pixels, size["longest_edge"])
            size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
            self.smaller: dict[str, Any] = {"size": type(self.images.size)(**size)}
        elif "image_position_ids" in names and hasattr(self.images, "max_soft_tokens"):
            self.pool = int(self.images.pooling_kernel_size)
            side = self.patch * self.pool
            fitting = [n for n in SOFT_TOKENS if n * side * side <= pixels]
            if not fitting:
                least = SOFT_TOKENS[0] * side * side
                raise UnsupportedModelError(f"Downscale(pixels={pixels}): the smallest size here is {least} pixels.")
            self.smaller = {"max_soft_tokens": min(fitting[-1], self.images.max_soft_tokens)}
        else:
            raise UnsupportedModelError(
                f"{type(self.images).__name__} shows every picture in sizes of its own, so Downscale has no use here: "
                "leave it out."
            )
        self._before: dict[str, Any] | None = None

    def apply(self) -> None:
        """Turn the processor down.

        Raises:
            UsageError: it is turned down already.
        """
        if self._before is not None or getattr(self.images, "_fsr_smaller", False):
            raise UsageError("this processor is turned down already: leave that block first.")
        self._before = {name: getattr(self.images, name) for name in self.smaller}
        self.images._fsr_smaller = True
        for name, value in self.smaller.items():
            setattr(self.images, name, value)

    def restore(self) -> None:
        """The processor as it was."""
        for name, value in (self._before or {}).items():
            setattr(self.images, name, value)
        if self._before is not None:
            del self.images._fsr_smaller
        self._before = None

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise `UsageError` if a picture of a call has more pixels: it was processed outside the block."""
        grid, places = inputs.get("image_grid_thw"), inputs.get("image_position_ids")
        if isinstance(grid, Tensor):
            most = int(grid[:, 1:].prod(-1).max()) * self.patch**2
        elif isinstance(places, Tensor):
            most = int((places >= 0).all(-1).sum(-1).max()) * self.patch**2
        else:
            return
        if most > self.pixels:
            raise UsageError(
                f"a picture of this call has {most} pixels and Downscale allows {self.pixels}: call the processor "
                "inside the `with` block, which turns it down."
            )
