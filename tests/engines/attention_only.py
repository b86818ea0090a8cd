"""Qwen3.5 without its recurrent layers, which vLLM's kernels for CPUs know in bfloat16 only: all else in float32.

A module of its own, because vLLM looks at model classes in another process.
"""

from __future__ import annotations

from typing import ClassVar

from fsr.serving.vllm.qwen3_5 import FSRQwen3_5ForConditionalGeneration

__all__ = ["AttentionOnly"]


class AttentionOnly(FSRQwen3_5ForConditionalGeneration):
    """Without a recurrent layer there is no state of one to plan for."""

    is_hybrid: ClassVar[bool] = False
