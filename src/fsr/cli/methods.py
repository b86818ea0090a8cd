"""`fsr methods`: what can be given to `--method`."""

from __future__ import annotations

import argparse
import json
from dataclasses import MISSING, fields
from typing import Any

from fsr.methods import Downscale, Late, available

# What is no method, as it does not say which tokens matter: where it works, and how it is written.
STAGES = {
    Downscale.where: "Downscale(pixels=400_000) | FSR(keep=128)",
    Late.where: "FSR(keep=128) | Late({12: 64, 24: 0})",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr methods`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def describe() -> dict[str, dict[str, Any]]:
    """name -> paper, where it prunes, the signals it needs, licence note of the authors' code, options with
    defaults."""
    return {
        name: {
            "paper": cls.paper,
            "where": cls.where,
            "needs": sorted(cls.needs),
            "licence_note": cls.licence_note,
            "options": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
        }
        for name, cls in available().items()
    }


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    table = describe()
    if args.json:
        print(json.dumps({"methods": table}))
        return 0
    rows = [("method", "where", "needs", "paper")]
    for name, row in table.items():
        where = "inside" if row["where"].startswith("inside") else "before"
        rows.append((name, where, ", ".join(row["needs"]) or "-", row["paper"]))
    widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
    for *cells, paper in rows:
        print(*(cell.ljust(width) for cell, width in zip(cells, widths)), paper, sep="  ")
    print("\nbefore, inside: the language model. Stages to chain with a method, in Python (docs/budgets.md):")
    for where, chained in STAGES.items():
        print(f"  {chained:<41}  {where}")
    return 0
