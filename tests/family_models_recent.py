"""Tiny random models of the families of 2025 and 2026: hybrid decoders, mixtures of experts, ragged rasters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from family_models import CLOSE, IMAGE, OPEN, PAD, VIDEO, VOCAB, made

# Half of the positions of a head, for width, height and time (interleaved).
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
DENSE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=512, rope_parameters=MROPE, pad_token_id=PAD,
    bos_token_id=1, eos_token_id=None,
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
# Three Gated DeltaNet layers to one with attention, as in the checkpoints.
HYBRID = dict(
    num_hidden_layers=4, linear_conv_kernel_dim=2, linear_key_head_dim=8, linear_value_head_dim=8,
    linear_num_key_heads=2, linear_num_value_heads=4,
    rope_parameters={**MROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True},
)  # fmt: skip
TOWER = dict(
    depth=4, num_heads=4, in_channels=3, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, hidden_size=32,
    intermediate_size=48, out_hidden_size=32, num_position_embeddings=64,
)  # fmt: skip


def qwen_recent(stem: str, experts: bool = False) -> Callable[[str], Any]:
    """Qwen3.5 and 3.6 (the same classes), Qwen3-VL with experts."""

    def build(attention: str) -> Any:
        import transformers

        hybrid = HYBRID if "3_5" in stem else {}
        text = {**DENSE, **(EXPERTS if experts else {}), **hybrid}
        if experts and hybrid:
            text["shared_expert_intermediate_size"] = 32
        vision = TOWER if hybrid else {**TOWER, "deepstack_visual_indexes": [0, 2]}
        config = getattr(transformers, f"{stem}Config")(
            text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
            vision_start_token_id=OPEN, vision_end_token_id=CLOSE,
        )  # fmt: skip
        return made(f"{stem}ForConditionalGeneration", config, attention)

    return build
