"""The plots of `compare` and `ablate` (needs the extra `plot`). Colours are Okabe and Ito's; markers and line styles
differ too, so that colour is never the only difference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fsr.errors import UsageError
from fsr.evaluation.question_set import KINDS

__all__ = ["need_matplotlib", "plot_ablation", "plot_comparison", "style"]

# Black and a thick solid line are FSR's alone; the others follow in order of appearance.
_BLACK = "#000000"
_COLORS = ["#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#8c8c8c"]
_MARKERS = "sv^DPX*<>p"
_LINES = ["-", "--", ":", "-."]


def need_matplotlib() -> None:
    """Raise `UsageError` now rather than after minutes of work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'fsr-vlm[plot]'.") from error


def style(i: int, name: str = "") -> dict[str, Any]:
    """Line and marker of the i-th contender; FSR has its own."""
    if name == "fsr":
        return {"color": _BLACK, "marker": "o", "linestyle": "-", "linewidth": 2.6, "markersize": 7, "zorder": 5}
    return {
        "color": _COLORS[i % len(_COLORS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _LINES[i // len(_COLORS) % len(_LINES)],
        "linewidth": 1.4,
        "markersize": 5,
        "zorder": 3,
    }


def plot_comparison(result: dict[str, Any], path: Path) -> None:
    """Accuracy by budget for every contender: all kinds together with intervals, and one small panel per kind."""
    from matplotlib.figure import Figure

    rows, full = result["results"], result["unpruned"]
    names = ["fsr", *(n for n in dict.fromkeys(r["method"] for r in rows) if n != "fsr")]
    at = {(r["method"], r["keep"]): r for r in rows}
    keeps = sorted({r["keep"] for r in rows}, key=lambda k: at[names[0], k]["tokens"])
    tokens = [at[names[0], k]["tokens"] for k in keeps]
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 6, width_ratios=[1.25, 1.25, 1, 1, 1, 1])
    panels: list[tuple[Any, str | None]] = [(figure.add_subplot(grid[:, :2]), None)]
    panels += [(figure.add_subplot(grid[i // 4, 2 + i % 4]), kind) for i, kind in enumerate(KINDS)]
    for axes, kind in panels:
        level = full["accuracy"]["value"] if kind is None else full["accuracy_by_kind"][kind]
        blind = result["questions"]["majority_by_kind"]
        guess = sum(blind.values()) / len(blind) if kind is None else blind[kind]
        axes.axhline(100 * level, color="#555555", linewidth=1, linestyle=(0, (6, 3)), label="unpruned")
        axes.axhline(100 * guess, color="#bbbbbb", linewidth=1, linestyle=(0, (1, 2)), label="most frequent answer")
        for i, name in enumerate(names):
            here = [at[name, k] for k in keeps]
            if kind is not None:
                axes.plot(tokens, [100 * r["accuracy_by_kind"][kind] for r in here], **style(i - 1, name))
                continue
            values = [100 * r["accuracy"]["value"] for r in here]
            axes.plot(tokens, values, label="FSR" if name == "fsr" else name, **style(i - 1, name))
            if name == "fsr":
                low, high = ([100 * r["accuracy"][end] for r in here] for end in ("low", "high"))
                axes.fill_between(tokens, low, high, color=_BLACK, alpha=0.12, linewidth=0, zorder=1)
        solved = kind is None or kind in result["solved_kinds"]
        axes.set_title("all kinds" if kind is None else kind if solved else f"{kind} (not solved)", fontsize=11)
        axes.set_xscale("log", base=2)
        axes.set_xticks(tokens, [f"{t:g}" for t in tokens])
        axes.minorticks_off()
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if kind is not None:
            axes.set_ylim(0, 104)
    first = panels[0][0]
    first.set_ylabel("correct answers, %")
    first.set_xlabel(f"visual tokens kept of {full['tokens']:.0f}")
    handles = first.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(7, len(names) + 2), frameon=False, fontsize=10)
    q = result["questions"]
    figure.suptitle(f"{q['count']} questions on {q['pictures']} pictures, {q['split']} split", fontsize=12)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def plot_ablation(result: dict[str, Any], path: Path) -> None:
    """One panel per option, each with its own scale: accuracy of each value at each budget; the base is ringed."""
    from matplotlib.figure import Figure

    rows = result["results"]
    groups = list(dict.fromkeys(r["group"] for r in rows))
    keeps = list(dict.fromkeys(r["keep"] for r in rows))
    columns = 4
    lines = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(13, 2.9 * lines), layout="constrained")
    axes_list = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, group in zip(axes_list, groups):
        here = [r for r in rows if r["group"] == group]
        labels = list(dict.fromkeys(r["variant"] for r in here))
        for i, keep in enumerate(keeps):
            at = {r["variant"]: r for r in here if r["keep"] == keep}
            values = [100 * at[v]["accuracy"]["value"] for v in labels]
            errors = [[abs(100 * at[v]["accuracy"][e] - y) for v, y in zip(labels, values)] for e in ("low", "high")]
            line = style(i) | {"color": [_BLACK, "#0072b2", "#d55e00", "#009e73"][i % 4], "linestyle": "-"}
            label = f"{keep} tokens" if axes is axes_list[0] else None
            axes.errorbar(range(len(labels)), values, yerr=errors, capsize=2, elinewidth=0.8, label=label, **line)
            ringed = [j for j, v in enumerate(labels) if at[v]["is_base"]]
            axes.plot(ringed, [values[j] for j in ringed], "o", markersize=13, markerfacecolor="none", color="#888888")
        axes.set_title(group, fontsize=10)
        folded = [label.replace(", ", ",\n") if len(label) > 9 else label for label in labels]
        tilted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 5 else {}
        axes.set_xticks(range(len(labels)), labels if tilted else folded, fontsize=8, **tilted)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
        # One scale for all panels would flatten them beside the turned sign; none spans less than 16 points.
        low, high = axes.get_ylim()
        middle, half = (low + high) / 2, max((high - low) / 2, 8)
        axes.set_ylim(middle - half, middle + half)
    for axes in axes_list[len(groups) :]:
        axes.set_visible(False)
    for axes in axes_list[::columns]:
        axes.set_ylabel("correct answers, %")
    figure.legend(loc="outside lower center", ncols=len(keeps), frameon=False)
    q = result["questions"]
    title = f"FSR, one option at a time (ring: the base): {q['count']} questions, {q['split']} split"
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=120)
