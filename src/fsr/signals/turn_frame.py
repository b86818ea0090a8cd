"""What a chat template writes around turns, learned by rendering sentinels with it.

Nothing is known of a template beforehand: some take content as parts and some as a string, some want a system turn or a
picture first, some know tools. What a template refuses to render is left out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["TurnFrame", "loose", "turn_frame"]

USER, ANSWER, TOOL, SYSTEM = "fsrusersentinel", "fsranswersentinel", "fsrtoolsentinel", "fsrsystemsentinel"


@dataclass(frozen=True)
class TurnFrame:
    """What stands around a user's text, as written.

    before: in front of it, as far as all turns share it. after: behind it, up to where the assistant answers.
    end: the part of `after` that stands there whatever comes next ("<|im_end|>"), else empty.
    answered: between an answer and the next `before` ("</s>").
    tool_lead: in front of a tool's result that is rendered as a user's turn ("<tool_response>"), else empty.
    tool_head: in front of a tool's result that has a turn of its own, else empty.
    """

    before: str
    after: str
    end: str = ""
    answered: str = ""
    tool_lead: str = ""
    tool_head: str = ""


_known: WeakKeyDictionary[Any, tuple[Any, TurnFrame | None]] = WeakKeyDictionary()


def turn_frame(processor: Any) -> TurnFrame | None:
    """The frame of a processor's (or bare tokenizer's) chat template; None without one, or if it renders no probe."""
    tokenizer = getattr(processor, "tokenizer", processor)
    # Templates of processors take content as a list of parts, those of bare tokenizers as a string.
    own = processor if getattr(processor, "chat_template", None) is not None else tokenizer
    template = getattr(own, "chat_template", None)
    if template is None:
        return None
    try:
        if own in _known and _known[own][0] == template:
            return _known[own][1]
        _known[own] = (template, _learned(own, tokenizer))
        return _known[own][1]
    except TypeError:  # neither hashed nor referred to weakly
        return _learned(own, tokenizer)


def _learned(own: Any, tokenizer: Any) -> TurnFrame | None:
    for start, parts in _shapes(own is tokenizer):
        user = {"role": "user", "content": _content(USER, parts)}
        first = _render(own, [*start, user])
        if first is None or first.count(USER) != 1:
            continue
        before, after = first.split(USER)
        answer = {"role": "assistant", "content": _content(ANSWER, parts)}
        plain = _render(own, [*start, user], ask=False) or ""
        later = _render(own, [*start, user, answer, user]) or ""
        answered = ""
        if later.count(USER) == 2 and later.count(ANSWER) == 1:
            between = later.split(USER)[1].split(ANSWER)[1]
            # The first turn may follow a system turn that the template adds; what a later turn shares belongs to all.
            shared = _shared_end(before, between)
            if shared.strip():
                before, answered = shared, between[: len(between) - len(shared)]
        before = before.split(SYSTEM)[-1]
        image = getattr(own, "image_token", None)
        if parts == "pictured" and image:
            before = before.replace(str(image), "")
        end = plain.split(USER)[1] if plain.count(USER) == 1 else ""
        lead, head = _tools(own, [*start, user], answer, parts, before, loose(answered))
        return TurnFrame(before, after, end if loose(after).startswith(loose(end)) else "", answered, lead, head)
    return None


def _tools(own: Any, asked: list[Any], answer: Any, parts: str, before: str, answered: str) -> tuple[str, str]:
    """(`tool_lead`, `tool_head`) of `TurnFrame`."""
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    result = {"role": "tool", "name": "look", "content": _content(TOOL, "text" if parts == "pictured" else parts)}
    mark = (loose(before).split(" ") or [""])[-1]
    for said in ({**answer, "tool_calls": [call]}, answer):
        text = _render(own, [*asked, said, result], ask=False)
        if text is None or text.count(TOOL) != 1 or ANSWER not in text:
            continue
        between = loose(text.split(ANSWER)[-1].split(TOOL)[0])
        if mark and mark in between:
            return between.rsplit(mark, 1)[1].strip(), ""
        head = between.removeprefix(answered).strip()
        return "", head if any(c.isalnum() for c in head) else ""
    return "", ""


def _shared_end(one: str, other: str) -> str:
    """The longest common end that begins with a whole mark or word: "<s>[INST]" and "</s>[INST]" share "[INST]"."""
    pieces = (re.findall(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\s+|[^\s<\[]+|.", text, re.S)[::-1] for text in (one, other))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*pieces))
    return "".join([piece for piece, _ in same][::-1])


def _shapes(bare: bool) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Conversations to begin with, and how content is written, the usual ones first."""
    usual = ["text", "list", "pictured"] if bare else ["list", "text", "pictured"]
    for parts in usual:
        yield [], parts
    for parts in usual:
        yield [{"role": "system", "content": _content(SYSTEM, "text" if parts == "text" else "list")}], parts


def _content(text: str, parts: str) -> Any:
    if parts == "text":
        return text
    said = [{"type": "text", "text": text}]
    return [{"type": "image"}, *said] if parts == "pictured" and text == USER else said


def _render(own: Any, messages: list[dict[str, Any]], ask: bool = True) -> str | None:
    try:
        text = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except Exception:  # templates raise what they like about a turn that they do not take
        return None
    return text if isinstance(text, str) else None


def loose(text: str) -> str:
    """Whitespace as single blanks: decoding does not always give it back."""
    return " ".join(text.split())
