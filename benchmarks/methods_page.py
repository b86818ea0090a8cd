"""Write docs/methods.md from the methods themselves: a table and one card each.

python benchmarks/methods_page.py [--check]
"""

import argparse
import inspect
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from fsr.methods import available

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = Path(__file__).with_suffix(".md").read_text()


def card(name: str, cls: type) -> str:
    """One method: facts, options, and its module's docstring (paper, equations, differences)."""
    document = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    if name == "fsr":
        document += "\n\n" + inspect.cleandoc(cls.__doc__ or "")
    options = ", ".join(f"`{f.name}={f.default!r}`" for f in fields(cls) if f.default is not MISSING)
    needs = ", ".join(sorted(cls.needs)) or "nothing"
    return (
        f"## {name}\n\n{cls.paper}; prunes {cls.where}; needs {needs}; {cls.licence_note}.\n"
        f"Options: {options}.\n\n```text\n{document}\n```\n"
    )


def page() -> str:
    """The whole page."""
    methods = available()
    rows = [
        f"| [{n}](#{n}) | {c.paper} | {c.where} | {', '.join(sorted(c.needs)) or '-'} | {c.licence_note} |"
        for n, c in methods.items()
    ]
    table = "\n".join(["| method | paper | prunes | needs | licence note |", "|---|---|---|---|---|", *rows])
    return "\n".join([HEAD, table, "", *(card(n, c) for n, c in methods.items())])


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return 0 if PAGE.exists() and PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
