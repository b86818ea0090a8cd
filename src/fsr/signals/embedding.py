"""Relevance without a paired text tower: projected visual features against the language model's own word embeddings.

For Qwen-VL, InternVL, Gemma and others no public text tower was trained together with the vision tower. Both live in
the input space of the language model, though, so the cosine between a visual feature and the embeddings of the
question's tokens is a substitute. Whether high or low means relevant differs between models, and so between papers:
OpenVINO takes the cosine as it is, EADP negates it on Qwen. So may what is best done with several words: papers average
over them, and on the embedded models the word that a token resembles most says more. `fsr calibrate` measures both.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.errors import RelevanceError
from fsr.signals.question_tokens import question_ids, tokenizer_of
from fsr.signals.text_projections import call_module

__all__ = ["EmbeddingRelevance", "Words", "over_words", "word_cosines"]

Words = Literal["mean", "strongest"]


def word_cosines(embedding: Any, ids: list[int], features: Tensor) -> Tensor:
    """Cosines between T word embeddings (of token numbers `ids`) and features [N, D]: float32 [T, N]."""
    words = call_module(embedding, torch.tensor([ids]))[0].to(features.device)
    return normalize(words.float(), dim=-1) @ normalize(features.float(), dim=-1).T


def over_words(cosines: Tensor, sign: int = 1, words: Words = "mean") -> Tensor:
    """Cosines [T, N] to relevance [N]: sign times their mean over words, or the largest of sign times each."""
    return sign * cosines.mean(0) if words == "mean" else (sign * cosines).amax(0)


@dataclass(frozen=True)
class EmbeddingRelevance:
    """A scorer of projected features [N, D], not of the tower's patches.

    Args:
        embedding: the language model's input embedding. tokenizer: of the same model; None until `bound`.
        sign: 1 or -1. words: the "mean" over the question's tokens, or the "strongest" of them for each visual token.

    Raises:
        RelevanceError: another sign, or another word for words.
    """

    embedding: Any
    tokenizer: Any = field(default=None, compare=False, repr=False)
    sign: int = 1
    words: Words = "mean"

    layer = -1
    reads_features = True

    @property
    def source(self) -> str:
        """Its name in reports."""
        return "embedding" + ", negated" * (self.sign == -1) + ", strongest word" * (self.words == "strongest")

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise RelevanceError(f"sign={self.sign!r}: use 1 or -1 (`fsr calibrate` measures it).")
        if self.words not in ("mean", "strongest"):
            raise RelevanceError(f"words={self.words!r}: use 'mean' or 'strongest' (`fsr calibrate` measures it).")

    def bound(self, processor: Any) -> EmbeddingRelevance:
        """The same with the tokenizer of a processor, unless it has one.

        Raises:
            RelevanceError: there is no tokenizer.
        """
        if self.tokenizer is not None:
            return self
        return replace(self, tokenizer=tokenizer_of(processor, "embedding"))

    @torch.no_grad()
    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """Projected features [N, D] -> float32 [N], see `over_words`."""
        cosines = word_cosines(self.embedding, question_ids(self.tokenizer, question), patches)
        return over_words(cosines, self.sign, self.words)

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingRelevance:
        """A copied model gets a scorer of its own embedding; the tokenizer is shared."""
        return replace(self, embedding=copy.deepcopy(self.embedding, memo))
