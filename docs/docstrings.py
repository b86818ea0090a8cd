"""How this project's docstrings become Markdown: a Griffe extension that the API pages are built with.

In the source, fields stand as plain lines, `name: text`, several names at once where one text fits all. A Google-style
parser would run them together into one paragraph, so each becomes an item of a list.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"(?:\w+, )*\w+: ")
ENTRY = re.compile(r" {4}\w[\w, ]*: ")
SHARED = re.compile(r"(\w+(?:, \w+)+): (.*)", re.DOTALL)


class Fields(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """See `griffe.Extension`."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, _names(obj))


def as_markdown(text: str, names: set[str]) -> str:
    """Paragraphs of fields as lists, and shared entries of `Args:` taken apart (the parser knows one name per entry).

    names: attributes and parameters of the object, so that prose with a colon in it is left alone.
    """
    return "\n\n".join(_paragraph(p, names) for p in text.split("\n\n"))


def _paragraph(text: str, names: set[str]) -> str:
    lines = text.split("\n")
    if lines[0] == "Args:":
        return _section(lines)
    first = FIELD.match(text)
    if not first or first[0][:-2].split(", ")[0] not in names:
        return text
    # A field starts where a line (or a sentence: "...; other: ...") names one; anything else continues the one before.
    known = "|".join(sorted(map(re.escape, names)))
    joined = re.sub(rf"(?<=[.;]) +(?=(?:(?:{known}), )*(?:{known}): )", "\n", text)
    items: list[str] = []
    for line in joined.split("\n"):
        field = FIELD.match(line)
        if field and field[0][:-2].split(", ")[0] in names:
            given = ", ".join(f"`{name}`" for name in field[0][:-2].split(", "))
            items.append(f"- {given}: {line[field.end() :].rstrip(';')}")
        else:
            items[-1] += " " + line.strip()
    return "\n".join(items)


def _section(lines: list[str]) -> str:
    """`Args:` with one entry per name; whatever starts no entry continues the one before."""
    entries: list[str] = []
    for line in lines:
        if not line.startswith(" ") or ENTRY.match(line):
            entries.append(line)
        else:
            entries[-1] += "\n        " + line.strip()
    out: list[str] = []
    for entry in entries:
        shared = SHARED.fullmatch(entry.strip()) if entry.startswith(" ") else None
        out += [f"    {name}: {shared[2]}" for name in shared[1].split(", ")] if shared else [entry]
    return "\n".join(out)


def _names(obj: griffe.Object) -> set[str]:
    names = {p.name for p in getattr(obj, "parameters", [])}
    if obj.is_class:
        names |= {name for name, member in obj.members.items() if member.is_attribute}
        init = obj.members.get("__init__")
        names |= {p.name for p in getattr(init, "parameters", [])}
    return names
