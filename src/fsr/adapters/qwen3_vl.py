"""Qwen3-VL, Qwen3.5 and Qwen3.6, dense and with experts: as Qwen2-VL without windows.

The tower of Qwen3-VL also hands features of earlier layers to the first layers of the language model (deepstack).
`containers.rebuild` gathers them at the kept rows, so each kept token gets its own (features merged by a method stay at
the row that absorbed them). Qwen3.5 and 3.6 have the same tower without them; three of four layers of their language
model are recurrent, which needs nothing here: prompts are shortened before it.
"""

from __future__ import annotations

from fsr.adapters.qwen2_vl import QwenVLAdapter
from fsr.adapters.registry import register

__all__ = ["Qwen3VLAdapter"]


@register
class Qwen3VLAdapter(QwenVLAdapter):
    """A video's frames stand in runs of their own, with time stamps between; together they are one unit."""

    name = "qwen3-vl"
    model_types = frozenset({"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"})
