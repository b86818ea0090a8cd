"""A measurement as stacked bars, one per method, budget and batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fsr.errors import UsageError
from fsr.profiling.measure import STAGES

__all__ = ["plot"]

# Okabe and Ito's palette: distinguishable with any colour vision.
COLOURS = ("#999999", "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#E69F00", "#CCCCCC")


def plot(result: dict[str, Any], path: str | Path) -> None:
    """Write the picture; the format follows the file's ending.

    Raises:
        UsageError: matplotlib is missing, or the result is not a measurement.
    """
    if result["kind"] != "measured":
        raise UsageError("--plot draws measured times: leave --preset out.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'fsr-vlm[plot]'.") from error
    rows = result["results"]
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{r['method']} {r['visual_tokens']['after']} tokens, batch {r['batch']}" for r in rows]
    left = [0.0] * len(rows)
    for stage, colour in zip(STAGES, COLOURS):
        widths = [r["ms"][stage]["median"] for r in rows]
        axes.barh(names, widths, left=left, label=stage.replace("_", " "), color=colour, edgecolor="white")
        left = [a + b for a, b in zip(left, widths)]
    axes.invert_yaxis()
    axes.set_xlabel(f"milliseconds per batch ({result['new_tokens']} new tokens)")
    depth = f"{result['language_layers']} language layers"
    axes.set_title(f"{result['model']}, {result['weights']} weights, {depth}, {result['device']}", fontsize=9)
    axes.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    figure.savefig(path, dpi=130)
