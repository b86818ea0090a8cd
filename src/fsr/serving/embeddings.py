"""Pruned features for an engine that only decodes: encode and prune here, generate there.

Stock vLLM takes them (`LLM(model, enable_mm_embeds=True)`) for the LLaVA families, whose placeholders it counts by the
features it is given. Send prompts whose pictures keep the same number of tokens together: its stock LLaVA stops the
engine when one encoder batch holds different lengths (the class of `fsr.serving.vllm` does not). Embeddings are trusted
input: whoever may send them can stop the engine, so never take them from strangers.
"""

from __future__ import annotations

from torch import Tensor

from fsr.errors import UnsupportedModelError
from fsr.pipeline.report import Report

__all__ = ["image_embeddings"]


def image_embeddings(report: Report, row: int = 0) -> dict[str, list[Tensor]]:
    """The `multi_modal_data` of one prompt: {"image": [features [K, D], ...]} in prompt order.

    Use it with the prompt's text as it was before pruning, one placeholder per picture.

    Args:
        report: what `prepare(...)` reports; row: the prompt's row in the batch.

    Raises:
        UnsupportedModelError: kept tokens have positions of their own (Qwen), which stock engines cannot be told.
    """
    if report.positions != "repack":
        raise UnsupportedModelError(
            "these tokens keep their original positions, and an engine would number them anew: use the model class of "
            "fsr.serving.vllm, or positions='repack' if you mean it."
        )
    return {"image": [s.features.cpu() for s, owner in zip(report.selections, report.rows) if owner == row]}
