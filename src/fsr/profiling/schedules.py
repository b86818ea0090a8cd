"""Visual tokens per language layer for methods that prune inside the language model, so that `count` covers them as
well."""

from __future__ import annotations

from collections.abc import Sequence

from fsr.errors import UsageError

__all__ = ["fastv", "pyramid_drop", "staged"]


def staged(layers: int, start: int, steps: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """`start` tokens at first, then `n` from layer `i` (0-based) on, for every (i, n) in `steps`; SparseVLM's
    schedules are such lists.

    Raises:
        UsageError: layers out of order or out of range.
    """
    marks = [i for i, _ in steps]
    if marks != sorted(set(marks)) or any(not 0 <= i < layers for i in marks):
        raise UsageError(f"steps at layers {marks} do not fit {layers} layers in rising order.")
    out, now, todo = [], start, dict(steps)
    for layer in range(layers):
        now = todo.get(layer, now)
        out.append(now)
    return tuple(out)


def fastv(layers: int, start: int, keep: int, after: int = 2) -> tuple[int, ...]:
    """FastV (arXiv 2403.06764): all tokens in the first `after` layers, `keep` in the others."""
    return staged(layers, start, [(after, keep)])


def pyramid_drop(
    layers: int, start: int, ratio: float = 0.5, marks: Sequence[float] = (0.25, 0.5, 0.75)
) -> tuple[int, ...]:
    """PyramidDrop (arXiv 2410.17247): the share `ratio` survives at each mark (share of the depth)."""
    if not 0 < ratio <= 1:
        raise UsageError(f"ratio={ratio} is no share: give 0 < ratio <= 1.")
    steps = [(int(layers * m), max(1, int(start * ratio ** (i + 1)))) for i, m in enumerate(marks)]
    return staged(layers, start, steps)
