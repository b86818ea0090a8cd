"""The tables of `fsr compare --plane`: means, who is ahead in each cell, and the verdict in words."""

from __future__ import annotations

from typing import Any

from fsr.evaluation.tables import points

__all__ = ["plane_tables"]

Rows = list[list[str]]


def plane_tables(result: dict[str, Any]) -> dict[str, Rows]:
    """Tables by title; the first row of each is its head."""
    means, keeps = result["verdict"]["means"], list(dict.fromkeys(r["keep"] for r in result["results"]))
    names = sorted(means, key=lambda n: -means[n]["all"])
    head = ["accuracy, %", "all budgets", *(f"{k}: clean / plane" for k in keeps)]
    rows: Rows = [head]
    full, blind = result["unpruned"]["accuracy"]["value"], result["text_alone"]
    rows.append(["unpruned", f"{100 * full:.1f}", *["-"] * len(keeps)])
    for name in names:
        m = means[name]
        cells = [f"{100 * m['clean_by_keep'][str(k)]:.1f} / {100 * m['by_keep'][str(k)]:.1f}" for k in keeps]
        rows.append([f"**{name}**" if name == "fsr" else name, f"{100 * m['all']:.1f}", *cells])
    rows.append(["text alone", f"{100 * blind:.1f}", *["-"] * len(keeps)])
    tables = {"Mean over the plane of signal qualities": rows}
    for name in names:
        tables[f"{name}: mean over budgets, by quality of relevance (columns) and saliency"] = _cells(result, name)
    if "lead" in result["verdict"]:
        tables["Verdict"] = _verdict(result["verdict"])
    return tables


def _cells(result: dict[str, Any], name: str) -> Rows:
    pointing = result["pointing"]
    told = [f"{level}" + (f" ({100 * p:.0f} %)" if (p := pointing[level]) is not None else "") for level in pointing]
    rows: Rows = [["accuracy, %", *told]]
    for kind in result["saliency"]:
        cells = []
        for level in result["relevance"]:
            here = [
                r["accuracy"]
                for r in result["results"]
                if (r["method"], r["relevance"], r["saliency"]) == (name, level, kind)
            ]
            cells.append(f"{100 * sum(here) / len(here):.1f}")
        rows.append([kind, *cells])
    return rows


def _verdict(verdict: dict[str, Any]) -> Rows:
    lead, beaten = verdict["lead"], verdict["beaten"]
    rows: Rows = [["what is asked", "answer"]]
    found = "; ".join(
        f"{b['method']} at {b['keep']}, {b['relevance']}/{b['saliency']}: {100 * b['by']:.1f}" for b in beaten[:12]
    )
    rows.append(
        [
            "method and cell where one before the language model beats FSR (McNemar p < 0.01)",
            f"{len(beaten)} over {verdict['cells']} cells" + (f": {found}" if beaten else ""),
        ]
    )
    rows.append(
        [
            f"FSR minus the best other ({verdict['best_other']}), plane and all budgets",
            f"{points(lead['value'], 2)} ({points(lead['low'], 2)} to {points(lead['high'], 2)})",
        ]
    )
    for name, pairs in verdict["fsr_minus"].items():
        told = ", ".join(f"{k}: {points(p['value'])} (p {p['p']:.2g})" for k, p in pairs.items())
        rows.append([f"FSR minus {name}, mean over the plane", told])
    return rows
