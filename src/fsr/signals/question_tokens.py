"""The tokens of a question's own text, without special tokens."""

from __future__ import annotations

from typing import Any

from fsr.errors import RelevanceError

__all__ = ["question_ids", "tokenizer_of"]


def tokenizer_of(processor: Any, source: str) -> Any:
    """The tokenizer of a processor, or the tokenizer itself.

    Raises:
        RelevanceError: there is none. source: the kind of relevance that asks, for the message.
    """
    if processor is None:
        raise RelevanceError(f"relevance={source!r} reads the question's tokens: pass processor=... as well.")
    return getattr(processor, "tokenizer", processor)


def question_ids(tokenizer: Any, question: str) -> list[int]:
    """Token numbers of the question's text.

    The text is tokenised by itself rather than looked for in the prompt: the question may have been given apart from
    it, and templates change the whitespace around it.

    Raises:
        RelevanceError: the text has no tokens.
    """
    ids = tokenizer(question, add_special_tokens=False).input_ids
    if not ids:
        raise RelevanceError("the question has no tokens: give a longer one, or relevance='none'.")
    return list(ids)
