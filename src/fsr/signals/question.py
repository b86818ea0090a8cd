"""The question inside a prompt, found with the model's own chat template.

A sentinel is rendered as the user's text; what stands before and after it frames every user turn of that template. The
last framed text of the prompt is the question. Whitespace is compared loosely because decoding does not always give it
back.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from os.path import commonprefix
from typing import Any

from torch import Tensor

from fsr.errors import QuestionError

__all__ = ["cut_question", "extract_questions", "questions_of", "turn_frame"]

SENTINEL = "fsrquestionsentinel"


def questions_of(
    processor: Any, input_ids: Tensor, mask: Tensor, pictured: list[int], question: Any, placeholders: Collection[int]
) -> tuple[list[str | None], bool]:
    """One question per row of `input_ids` [B, L], and True if one was read without a chat template.

    pictured: rows with pictures; the others need no question. question: given by the caller, one for all rows or one
    per row, or None: then `extract_questions` reads it from the prompt.

    Raises:
        QuestionError: none, an empty one, or another number of them than rows.
    """
    rows, plain = input_ids.shape[0], False
    if isinstance(question, str):
        given: list[str | None] = [question] * rows
    elif question is not None:
        given = list(question)
        if len(given) != rows:
            raise QuestionError(f"{len(given)} questions for {rows} prompts: give one string, or one per prompt.")
    else:
        found, plain = extract_questions(processor, input_ids[pictured], mask[pictured], placeholders)
        by_row = dict(zip(pictured, found))
        given = [by_row.get(row) for row in range(rows)]
    for row in pictured:
        if not (given[row] or "").strip():
            raise QuestionError(f"the question of prompt {row} is empty: give question=..., or relevance='none'.")
    return given, plain


def extract_questions(
    processor: Any, input_ids: Tensor, mask: Tensor, placeholders: Collection[int]
) -> tuple[list[str], bool]:
    """The question of every row of `input_ids` [B, L], and True if some row matched no chat template.

    Such rows give all their text but special tokens and placeholders (this is also what happens without any template).

    Raises:
        QuestionError: no processor to read the prompt with.
    """
    if processor is None:
        raise QuestionError(
            "this method reads the question: pass processor=... to prune() or prepare(), or question=... to the call."
        )
    tokenizer = getattr(processor, "tokenizer", processor)
    special = {str(t) for t in tokenizer.all_special_tokens}
    special |= {str(t) for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
    frame = turn_frame(processor)
    questions, plain = [], False
    for ids, keep in zip(input_ids.tolist(), mask.tolist()):
        text = tokenizer.decode(
            [i for i, m in zip(ids, keep) if m and i not in placeholders], skip_special_tokens=False
        )
        cut = None if frame is None else cut_question(text, *frame)
        plain |= cut is None
        questions.append(_without(text if cut is None else cut, special))
    return questions, plain


def turn_frame(processor: Any) -> tuple[str, str] | None:
    """What the chat template writes before and after a user's text, or None without a template."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(processor, "chat_template", None) is None and getattr(tokenizer, "chat_template", None) is None:
        return None
    # Templates of processors take content as a list of parts, those of bare tokenizers as a string.
    own = processor if getattr(processor, "chat_template", None) is not None else tokenizer
    content: Any = SENTINEL if own is tokenizer else [{"type": "text", "text": SENTINEL}]
    user, answer = {"role": "user", "content": content}, {"role": "assistant", "content": _like(content, "reply")}

    def split(messages: list[dict[str, Any]]) -> list[str]:
        return own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).split(SENTINEL)

    parts = split([user])
    if len(parts) != 2:
        return None
    before, after = parts
    # The first turn may follow a system turn that the template adds; what a later turn shares with it belongs to all.
    later = split([user, answer, user])
    if len(later) == 3:
        shared = commonprefix([before[::-1], later[1][::-1]])[::-1]
        before = shared if shared.strip() else before
    return before, after


def cut_question(text: str, before: str, after: str) -> str | None:
    """The last user text in `text` between the frame's parts, or None if the frame does not occur.

    Templates put a default system turn into `before` and end sentences in `after` that a real prompt may lack: the
    longest tail of `before`, and the longest head of `after`, that occur are used; at least their nearest word must.
    """
    text, before, after = _loose(text), _loose(before), _loose(after)
    heads = after.split(" ") if after else []
    for n in range(len(heads), 0, -1):
        found = text.rfind(" ".join(heads[:n]))
        if found >= 0:
            text = text[:found]
            break
    else:
        if heads:
            return None
    tails = before.split(" ") if before else []
    for n in range(len(tails), 0, -1):
        tail = " ".join(tails[-n:])
        found = text.rfind(tail)
        if found >= 0:
            return text[found + len(tail) :].strip()
    return text.strip() if not tails else None


def _like(content: Any, text: str) -> Any:
    return text if isinstance(content, str) else [{"type": "text", "text": text}]


def _loose(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _without(text: str, tokens: Collection[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, " ")
    return _loose(text)
