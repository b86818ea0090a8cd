"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: the packed pictures of Qwen2-VL with a convolution that merges 2 x 2
patches.

GLM-4.1V and its children write the frames of a clip with the placeholder of pictures (`mm_token_type_ids` tells them
apart), so Transformers takes pictures or clips in one call, not both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fsr.adapters.base import Modality
from fsr.adapters.qwen2_vl import QwenVLAdapter
from fsr.adapters.registry import register

__all__ = ["Glm4vAdapter"]


@register
class Glm4vAdapter(QwenVLAdapter):
    """Frames stand in runs of their own, with time stamps between; together they are one unit."""

    name = "glm4v"
    model_types = frozenset({"glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr"})

    def placeholder_ids(self) -> dict[Modality, int]:
        """Clips use the placeholder of pictures."""
        image = int(self.model.config.image_token_id)
        return {"image": image, "video": image}

    def hidden(self, output: Any, layer: int) -> Tensor:
        """The last hidden state is merged already: every patch gets that of its token."""
        if layer != -1:
            return super().hidden(output, layer)
        return output.last_hidden_state.detach().repeat_interleave(self._merge**2, dim=0).unsqueeze(0)
