"""The frame of a page: style and script are written into it, so that one file is the whole report."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fsr.view.html import Markup, join, script_json, tag

__all__ = ["page"]


def page(title: str, body: Any, data: dict[str, Any]) -> str:
    """A complete HTML document that loads nothing from anywhere. data: what the script tells about tokens."""
    here = files("fsr.view.page")
    style = Markup((here / "report.css").read_text(encoding="utf-8"))
    script = Markup((here / "report.js").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
        ),
        tag("title", title),
        tag("style", style),
    )
    tail = [
        tag("div", id="tip", aria_hidden="true"),
        tag("div", id="said", role="status", aria_live="polite", cls="unseen"),
        tag("script", script_json(data), id="data", type="application/json"),
        tag("script", script),
    ]
    return f"<!doctype html>\n{tag('html', head, tag('body', join([body]), tail), lang='en')}\n"
