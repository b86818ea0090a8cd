"""Relevance without a paired text tower: projected visual features against the language model's own word embeddings.

For Qwen-VL, InternVL, Gemma and others no public text tower was trained together with the vision tower. Both live in
the input space of the language model, though, so the cosine between a visual feature and the embeddings of the
question's tokens (averaged over tokens) is a substitute. Whether high or low means relevant differs between models, and
so between papers: OpenVINO takes the cosine as it is, EADP negates it on Qwen. `fsr calibrate` measures it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fsr.errors import RelevanceError
from fsr.signals.question_tokens import question_ids, tokenizer_of
from fsr.signals.text_projections import call_module

__all__ = ["EmbeddingRelevance", "word_cosines"]


def word_cosines(embedding: Any, ids: list[int], features: Tensor) -> Tensor:
    """Cosines between T word embeddings (of token numbers `ids`) and features [N, D]: float32 [T, N]."""
    words = call_module(embedding, torch.tensor([ids]))[0].to(features.device)
    return normalize(words.float(), dim=-1) @ normalize(features.float(), dim=-1).T


@dataclass(frozen=True)
class EmbeddingRelevance:
    """A scorer of projected features [N, D], not of the tower's patches.

    Args:
        embedding: the language model's input embedding. tokenizer: of the same model; None until `bound`.
        sign: 1 or -1.

    Raises:
        RelevanceError: another sign.
    """

    embedding: Any
    tokenizer: Any = field(default=None, compare=False, repr=False)
    sign: int = 1

    layer = -1
    reads_features = True

    @property
    def source(self) -> str:
        """Its name in reports."""
        return "embedding" if self.sign == 1 else "embedding, negated"

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise RelevanceError(f"sign={self.sign!r}: use 1 or -1 (`fsr calibrate` measures it).")

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
        """Projected features [N, D] -> float32 [N]: mean over the question's tokens of the cosine, times the sign."""
        cosines = word_cosines(self.embedding, question_ids(self.tokenizer, question), patches)
        return self.sign * cosines.mean(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingRelevance:
        """A copied model gets a scorer of its own embedding; the tokenizer is shared."""
        return replace(self, embedding=copy.deepcopy(self.embedding, memo))
