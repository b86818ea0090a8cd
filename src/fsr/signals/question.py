"""The question inside a prompt: the text of the last user turn, found with the chat template (see `turn_frame`).

Turns of tools are no questions, also where a template renders them as the user's. Text that a processor writes around
pictures (time stamps, names of frames and tiles) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from fsr.errors import QuestionError, counted
from fsr.signals.turn_frame import TurnFrame, loose, turn_frame

__all__ = ["check_characters", "cut_in_pieces", "cut_question", "extract_questions", "own_questions", "questions_of"]

PICTURE = "\ufffc"  # stands for a run of placeholders
UNTAUGHT = -100  # in labels
# What processors write next to a run: Qwen3-VL, InternVL, SmolVLM and Idefics (tiles), SmolVLM (clips), Gemma 3.
WRITTEN = "|".join(
    [
        r"<[\d.]+ seconds>",
        r"Frame ?\d+:",
        r"<row_\d+_col_\d+>|<global-img>|<fake_token_around_image>",
        r"You are provided the following series of [\w -]{1,40} frames from a [\w:, ]{1,30} \[H:MM:SS\] video\.",
        r"Frame from [\d:]+:",
        r"Here is the original image|and here are some crops to help you see better",
    ]
)
IN_FRONT, BEHIND = (
    re.compile(rf"(?:(?:{WRITTEN})\s*)+(?={PICTURE})"),
    re.compile(rf"(?<={PICTURE} )<fake_token_around_image>"),
)


def questions_of(
    processor: Any,
    input_ids: Tensor,
    mask: Tensor,
    pictured: list[int],
    question: Any,
    placeholders: Collection[int],
    labels: Any = None,
) -> tuple[list[str | None], bool]:
    """One question per row of `input_ids` [B, L], and True if one was read without a chat template.

    pictured: rows with pictures; the others need no question. question: given by the caller, one for all rows or one
    per row, or None: then `extract_questions` reads it from the prompt. labels: [B, L] or None; where the template does
    not tell, tokens that are taught are the answer and no part of the question (unless all of them are taught).

    Raises:
        QuestionError: none, an empty one, one that is no text, or another number of them than rows.
    """
    rows, plain = input_ids.shape[0], False
    if isinstance(question, str):
        given: list[str | None] = [question] * rows
    elif question is not None:
        given = _texts(question)
        if len(given) != rows:
            raise QuestionError(
                f"{counted(len(given), 'question')} for {counted(rows, 'prompt')}: give one string, or one per prompt."
            )
    else:
        taught = None
        if isinstance(labels, Tensor) and labels.shape == input_ids.shape:
            taught = labels[pictured].to(mask.device) != UNTAUGHT
        found, plain = extract_questions(processor, input_ids[pictured], mask[pictured], placeholders, taught)
        by_row = dict(zip(pictured, found))
        given = [by_row.get(row) for row in range(rows)]
    for row in pictured:
        asked = given[row] or ""
        if not asked.strip():
            raise QuestionError(f"the question of prompt {row} is empty: give question=..., or relevance='none'.")
        check_characters(asked)
    return given, plain


def check_characters(text: str, what: str = "the question") -> None:
    """Refuse what no tokenizer can read. what: it is, for the message.

    Raises:
        QuestionError: half of a UTF-16 pair stands alone.
    """
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        raise QuestionError(
            f"{what} holds {half!r}, half of a character (bytes that were read with the wrong encoding): decode it "
            "again, for example as UTF-8."
        )


def extract_questions(
    processor: Any, input_ids: Tensor, mask: Tensor, placeholders: Collection[int], taught: Tensor | None = None
) -> tuple[list[str], bool]:
    """The question of every row of `input_ids` [B, L], and True if some row matched no chat template.

    Such rows give all their text but special tokens and placeholders (this is also what happens without any template).
    taught: bool [B, L], tokens of the answer.

    Raises:
        QuestionError: no processor to read the prompt with, or a question that cannot be told from its answer.
    """
    if processor is None:
        raise QuestionError(
            "this method reads the question: pass processor=... to prune() or prepare(), or question=... to the call."
        )
    tokenizer, special = _reader(processor)
    frame = turn_frame(processor)
    questions, plain = [], False
    if frame is not None and (loose(frame.after) or loose(frame.end)):
        taught = None  # the template tells the answer from the question
    for row, (ids, seen) in enumerate(zip(input_ids, mask.bool())):
        words, cut = "", None
        for shown in (seen,) if taught is None else (seen & ~taught[row], seen):
            if not words:
                text = _decoded(tokenizer, ids[shown].tolist(), placeholders)
                cut = None if frame is None else cut_question(text, frame)
                words = _words(text if cut is None else cut, special)
        plain |= cut is None
        questions.append(words)
    return questions, plain


def own_questions(processor: Any, ids: Sequence[int], placeholders: Collection[int]) -> list[str]:
    """For each placeholder of a prompt `ids` [L] with one per picture: the text of the user's turn that shows it.

    Empty for a picture that came without words.

    Raises:
        QuestionError: there is no chat template, or none that marks where a user's turn begins and ends.
    """
    frame = turn_frame(processor)
    if frame is None or not loose(frame.before) or not (loose(frame.after) or loose(frame.end)):
        raise QuestionError("the chat template does not mark where a user's turn begins and ends: give the questions.")
    tokenizer, special = _reader(processor)
    text = loose(_decoded(tokenizer, ids, placeholders))
    heads = _heads(text, frame)
    if not heads:
        raise QuestionError("no user's turn of the chat template is in the prompt: write it with the template.")
    found: list[str] = []
    runs = [len(list(run)) for here, run in groupby(ids, lambda i: i in placeholders) if here]
    for place, count in zip((m.start() for m in re.finditer(PICTURE, text)), runs):
        turn = max(1, sum(head <= place for head in heads))
        rest = text[heads[turn - 1] : next(iter(heads[turn:]), len(text))]
        found += [_words(rest[: _end(rest, frame)], special)] * count
    return found


def cut_question(text: str, frame: TurnFrame) -> str | None:
    """The text of the last user turn, or None if no turn of this template is there.

    It begins behind the last `before` and ends at the first `end`, `after` or tool's turn behind that, if any (prompts
    may be cut off). Templates put a default system turn into `before` and end sentences in `after` that a real prompt
    may lack: the longest tail of `before`, and the longest head of `after`, that occur are used; at least their nearest
    word must.

    Raises:
        QuestionError: the template marks no end of a user's turn, and an answer stands behind it.
    """
    text = loose(text)
    heads = _heads(text, frame)
    if heads is None:
        return None
    over = loose(frame.answered)
    if heads and over and not loose(frame.after) and not loose(frame.end) and over in text[heads[-1] :]:
        raise QuestionError(
            "the chat template does not mark where the user's turn ends, and an answer stands behind it: give "
            "question=... (or labels that tell the answer)."
        )
    if not heads and (not loose(frame.after) or _end(text, frame) == len(text)):
        return text if not loose(frame.after) else None
    cut = ""
    for head in reversed(heads or [0]):
        rest = text[head:]
        cut = rest[: _end(rest, frame)].strip()
        lead = loose(frame.tool_lead)
        if not lead or not cut.replace(PICTURE, "").lstrip().startswith(lead):
            return cut
    return cut


def cut_in_pieces(scorer: Any, questions: Iterable[str | None]) -> list[str]:
    """A note if the scorer's text tower reads one of the questions in several pieces, whose average counts."""
    count = getattr(scorer, "pieces", None)
    # A token has a character at least: most questions need no tokenizer to be known as short.
    long = {q for q in questions if q and len(q.encode()) > 60} if count is not None else set()
    most = max(map(count, long), default=1) if count is not None else 1
    if most <= 1:
        return []
    return [
        f"the text tower read the question in {most} pieces and averaged them: give a shorter question=... to the call"
    ]


def _heads(text: str, frame: TurnFrame) -> list[int] | None:
    """Where users' texts begin; empty if the template marks no turns, None if it does and none is there."""
    words = loose(frame.before).split(" ") if frame.before.strip() else []
    if not words:
        return []
    tail = next((t for n in range(len(words)) if (t := " ".join(words[n:])) in text), None)
    if tail is None:
        return None
    first = text.find(words[-1]) + len(words[-1])  # a first turn may lack what ends the turn before
    found = [m.end() for m in re.finditer(re.escape(tail), text)]
    found = found if found[0] <= first else [first, *found]
    if not _is_plain(words[-1]):
        return found
    # A mark of plain words ("USER:") may also be part of a question.
    marks = [m for m in (_last(loose(frame.answered)), _last(loose(frame.end))) if m]
    heads = found[:1]
    for place in found[1:]:
        between = text[heads[-1] : place - len(tail)].rstrip()
        if _last(loose(frame.after)) in between or _ends_a_turn(between, marks):
            heads.append(place)
    return heads


def _end(text: str, frame: TurnFrame) -> int:
    """Where a user's text ends that begins `text`."""
    ends = [len(text)]
    if end := loose(frame.end):
        if (place := text.find(end)) >= 0:
            ends.append(place)
    elif frame.after.strip():
        words = loose(frame.after).split(" ")
        mark = next((t for n in range(len(words), 0, -1) if (t := " ".join(words[:n])) in text), "")
        if mark:
            ends.append(_first_turn(text, mark))
    if (head := loose(frame.tool_head)) and head in text:
        ends.append(_first_turn(text, head))
    return min(ends)


def _first_turn(text: str, mark: str) -> int:
    """The first `mark` that begins a turn: one of plain words may be part of the question, unless it stands behind the
    end of a sentence or a picture, or at the very end."""
    places = [m.start() for m in re.finditer(re.escape(mark), text)]
    if not _is_plain(mark):
        return places[0]
    sure = (p for p in places if _ends_a_turn(text[:p].rstrip(), []))
    return next(sure, places[-1] if text.endswith(mark) else places[0])


def _ends_a_turn(text: str, marks: Collection[str]) -> bool:
    return not text or text[-1] in f".?!…。？！;)\"'”’{PICTURE}" or any(text.endswith(mark) for mark in marks)


def _is_plain(mark: str) -> bool:
    return re.fullmatch(r"[\w ]+:?", mark) is not None


def _last(text: str) -> str:
    return text.split(" ")[-1]


def _decoded(tokenizer: Any, ids: Iterable[int], placeholders: Collection[int]) -> str:
    """The text with `PICTURE` for each run of placeholders."""
    runs: list[list[int]] = [[]]
    gap = False
    for i in ids:
        if i in placeholders:
            gap = True
            continue
        if gap:
            runs.append([])
            gap = False
        runs[-1].append(i)
    parts = [tokenizer.decode(run, skip_special_tokens=False) if run else "" for run in runs]
    return f" {PICTURE} ".join(parts) + (f" {PICTURE}" if gap else "")


def _words(text: str, special: Collection[str]) -> str:
    """What the user wrote of it."""
    text = BEHIND.sub(" ", IN_FRONT.sub(" ", loose(text)))
    for token in sorted(special, key=len, reverse=True):
        text = text.replace(token, " ")
    text = IN_FRONT.sub(" ", loose(text))  # special tokens may have stood between
    return loose(text.replace(PICTURE, " "))


def _reader(processor: Any) -> tuple[Any, set[str]]:
    """The tokenizer, and what it writes that nobody said."""
    tokenizer = getattr(processor, "tokenizer", processor)
    special = {str(t) for t in tokenizer.all_special_tokens}
    return tokenizer, special | {str(t) for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}


def _texts(question: Any) -> list[str | None]:
    if isinstance(question, bytes | bytearray | Mapping) or not isinstance(question, Iterable):
        raise QuestionError(f"question={question!r} is no text: give one string, or one per prompt.")
    given = list(question)
    for one in given:
        if one is not None and not isinstance(one, str):
            raise QuestionError(f"the question {one!r} is no text: give strings (None for prompts without pictures).")
    return given
