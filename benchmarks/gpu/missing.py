"""Prints the requirements of this package, one a line, that a machine lacks: `missing.py [pip-freeze.txt]`.

Without a list only Transformers is printed. torch itself never is: a GPU machine has its own build.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# Needed by the steps beside the package's own requirements: step 1 runs the tests marked `cuda`.
TESTS = ("pytest>=8.3", "hypothesis>=6.112")


def missing(wanted: list[str], freeze: str | None) -> list[str]:
    """Requirements that no line `name==version` of `freeze` satisfies; None: nothing is known of that machine."""
    requirements = [r for r in map(Requirement, wanted) if r.name != "torch"]
    if freeze is None:
        return [str(r) for r in requirements if r.name == "transformers"]
    lines = (line.split("==") for line in freeze.splitlines() if "==" in line)
    there = {canonicalize_name(name.strip()): version.strip().split("+")[0] for name, version in lines}
    return [
        str(r)
        for r in requirements
        if (version := there.get(canonicalize_name(r.name))) is None or not r.specifier.contains(version)
    ]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    freeze = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else None
    print("\n".join(missing([*project["dependencies"], *TESTS], freeze)))


if __name__ == "__main__":
    main()
