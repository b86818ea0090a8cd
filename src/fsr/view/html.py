"""HTML and SVG from nested calls. Whatever is not `Markup` already is escaped: nothing a user typed becomes markup."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

__all__ = ["Markup", "join", "number", "script_json", "tag"]

VOID = frozenset({"img", "input", "br", "hr", "meta", "link"})


class Markup(str):
    """Text that is HTML or SVG already."""


def tag(element: str, /, *children: Any, **attributes: Any) -> Markup:
    """`tag("p", "1 < 2", cls="note", data_view=3)` is `<p class="note" data-view="3">1 &lt; 2</p>`.

    Attributes that are None or False are left out, True stands alone; `cls` is class, `_` becomes `-`.
    """
    parts = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = "class" if key == "cls" else key.rstrip("_").replace("_", "-")
        text = number(value) if isinstance(value, float) else str(value)
        parts.append(key if value is True else f'{key}="{escape(text, quote=True)}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if element in VOID else f"{start}{join(children)}</{element}>")


def join(children: Iterable[Any]) -> Markup:
    """Several children (nested sequences allowed, None left out) as one."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(str(child))
        elif isinstance(child, (list, tuple)):
            parts.append(str(join(child)))
        else:
            parts.append(escape(str(child), quote=False))
    return Markup("".join(parts))


def number(value: float) -> str:
    """A coordinate with at most one decimal: pictures are a thousand units wide."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def script_json(value: Any) -> Markup:
    """JSON for a script element: no `<` in it, so that no text can close the element."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
