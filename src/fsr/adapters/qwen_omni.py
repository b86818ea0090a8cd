"""Thinkers of Qwen2.5-Omni and Qwen3-Omni: pictures and clips as in Qwen2.5-VL and Qwen3-VL; sound is left alone.

Sound goes through the model's own encoder in the call itself, and its placeholders stay. With `use_audio_in_video`
those of sound and clip alternate in the prompt; positions come from the model's own function, which knows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsr.adapters.qwen2_vl import QwenVLAdapter
from fsr.adapters.registry import register

__all__ = ["QwenOmniAdapter"]


@register
class QwenOmniAdapter(QwenVLAdapter):
    """What differs is how positions are asked for: by lengths of sound instead of token types."""

    name = "qwen-omni"
    model_types = frozenset({"qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"})

    def positions(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Three-dimensional positions of the whole prompt, [3, B, L]. Without a mask a `forward` of these models counts
        in one dimension."""
        if inputs.get("attention_mask") is None:
            return None
        heard = inputs.get("feature_attention_mask")
        positions, _ = self.base.get_rope_index(
            inputs["input_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=inputs.get("video_grid_thw"),
            attention_mask=inputs.get("attention_mask"),
            use_audio_in_video=bool(inputs.get("use_audio_in_video")),
            audio_seqlens=inputs.get("audio_feature_lengths") if heard is None else heard.sum(-1),
            second_per_grids=inputs.get("video_second_per_grid"),
        )
        return positions
