"""Relevance without a paired text tower: projected visual features against the language model's own word embeddings.

For Qwen-VL, InternVL, Gemma and others no public text tower was trained together with the vision tower. Both live in
the input space of the
language model, though, so the cosine between a visual feature and the embeddings of the question's tokens (averaged
over tokens) is a
substitute. It is an option, never a default: the paper uses no relevance on such models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fsr.errors import RelevanceError

__all__ = ["EmbeddingRelevance"]


class EmbeddingRelevance:
    """Scores features [N, D], not patches of the tower.

    Args:
        embedding: the language model's input embedding. tokenizer: of the same model; None until `bound`.
    """

    layer = -1
    reads_features = True

    def __init__(self, embedding: nn.Module, tokenizer: Any = None) -> None:
        self.embedding: Any = embedding
        self.tokenizer = tokenizer

    def bound(self, processor: Any) -> EmbeddingRelevance:
        """The same with the tokenizer of a processor, unless it has one.

        Raises:
            RelevanceError: there is no tokenizer.
        """
        if self.tokenizer is not None:
            return self
        if processor is None:
            raise RelevanceError("relevance='embedding' reads the question's tokens: pass processor=... as well.")
        return EmbeddingRelevance(self.embedding, getattr(processor, "tokenizer", processor))

    @torch.no_grad()
    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """Projected features [N, D] -> float32 [N]: mean over the question's tokens of the cosine."""
        ids = self.tokenizer(question, add_special_tokens=False).input_ids
        if not ids:
            raise RelevanceError("the question has no tokens: give a longer one, or relevance='none'.")
        # Through the module, not from its weights: adapters change what it gives, and offloading where they lie.
        device = self.embedding.weight.device
        given = torch.tensor([ids], device=patches.device if device.type == "meta" else device)
        words = normalize(self.embedding(given)[0].float(), dim=-1).mean(0)
        return normalize(patches.float(), dim=-1) @ words.to(patches.device)
