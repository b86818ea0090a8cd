"""Qwen3-VL (dense and mixture of experts): as Qwen2-VL without windows; deepstack features follow the selection.

The tower also hands features of earlier layers to the first layers of the language model. `containers.rebuild` gathers
them at the kept rows, so each kept token gets its own (features merged by a method stay at the row that absorbed them).
"""

from __future__ import annotations

from fsr.adapters.qwen2_vl import QwenVLAdapter
from fsr.adapters.registry import register

__all__ = ["Qwen3VLAdapter"]


@register
class Qwen3VLAdapter(QwenVLAdapter):
    """A video's frames stand in runs of their own, with time stamps between; together they are one unit."""

    name = "qwen3-vl"
    model_types = frozenset({"qwen3_vl", "qwen3_vl_moe"})
