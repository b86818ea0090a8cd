"""`fsr methods`: what can be given to `--method`."""

from __future__ import annotations

import argparse
import json
from dataclasses import MISSING, fields
from typing import Any

from fsr.methods import available


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
    width = max(map(len, table))
    for name, row in table.items():
        where = "inside" if row["where"].startswith("inside") else "before"
        print(f"{name:<{width}}  {where:<6}  {', '.join(row['needs']) or '-':<24}  {row['paper']}")
    return 0
