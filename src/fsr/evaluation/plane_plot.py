"""One figure of the plane: which method can be trusted when a signal fails (needs the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fsr.evaluation.plots import style

__all__ = ["plot_plane"]


def plot_plane(result: dict[str, Any], path: Path) -> None:
    """One panel per kind of saliency: accuracy, mean over budgets, by the level of relevance."""
    from matplotlib.figure import Figure

    rows = result["results"]
    names = ["fsr", *(n for n in dict.fromkeys(r["method"] for r in rows) if n != "fsr")]
    levels, kinds = result["relevance"], result["saliency"]
    figure = Figure(figsize=(4.2 * len(kinds) + 1, 4.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds):
        for i, name in enumerate(names):
            values = [
                100
                * np.mean(
                    [r["accuracy"] for r in rows if (r["method"], r["relevance"], r["saliency"]) == (name, level, kind)]
                )
                for level in levels
            ]
            axes.plot(range(len(levels)), values, label="FSR" if name == "fsr" else name, **style(i - 1, name))
        axes.set_title(f"saliency: {kind}", fontsize=11)
        axes.set_xticks(range(len(levels)), levels)
        axes.set_xlabel("relevance points at the asked thing, %")
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("correct answers, %, mean over budgets")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(8, len(names)), frameon=False, fontsize=9)
    figure.savefig(path, dpi=120, bbox_inches="tight")
