"""Tiny random models of the families of 2025 and 2026: hybrid decoders, mixtures of experts, ragged rasters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from family_models import CLOSE, IMAGE, OPEN, PAD, PATCH, VIDEO, VOCAB, internvl_vision, made, noise, text

AUDIO = 78
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


def glm(stem: str) -> Callable[[str], Any]:
    """GLM-4.1V ("Glm4v"), GLM-4.5V ("Glm4vMoe"), GLM-4.6V ("Glm46V", over the parts of GLM-4.1V)."""

    def build(attention: str) -> Any:
        import transformers

        text: dict[str, Any] = {**DENSE, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
        if stem == "Glm4vMoe":
            text |= dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1)
        vision = {k: v for k, v in TOWER.items() if k != "num_position_embeddings"}
        vision["image_size"] = 32
        if stem == "Glm46V":
            text, vision = {**text, "model_type": "glm4v_text"}, {**vision, "model_type": "glm4v_vision"}
        config = getattr(transformers, f"{stem}Config")(
            text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
            image_start_token_id=OPEN, image_end_token_id=CLOSE, video_start_token_id=75, video_end_token_id=76,
        )  # fmt: skip
        return made(f"{stem}ForConditionalGeneration", config, attention)

    return build


def gemma4(attention: str) -> Any:
    """Everything that a checkpoint of the family has, at once: bidirectional pictures (26B, 31B), experts (26B),
    embeddings per layer and shared keys and values (E2B, E4B), sliding windows (all)."""
    from transformers import Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    vision = Gemma4VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=64, standardize=False,
    )  # fmt: skip
    text = Gemma4TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, max_position_embeddings=512, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, use_bidirectional_attention="vision",
        enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32, final_logit_softcapping=30.0,
        pad_token_id=PAD, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    config = Gemma4Config(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO, boi_token_id=OPEN,
        eoi_token_id=CLOSE, audio_token_id=77,
    )  # fmt: skip
    return made("Gemma4ForConditionalGeneration", config, attention)


def pixtral_vision() -> Any:
    from transformers import PixtralVisionConfig

    return PixtralVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=4
    )


def mistral3(attention: str) -> Any:
    from transformers import Mistral3Config

    config = Mistral3Config(
        vision_config=pixtral_vision(), text_config=text(), image_token_index=IMAGE, vision_feature_layer=-1
    )
    return made("Mistral3ForConditionalGeneration", config, attention)


def pixtral(attention: str) -> Any:
    """Pixtral-12B: `llava` with a Pixtral tower."""
    from transformers import LlavaConfig

    config = LlavaConfig(
        vision_config=pixtral_vision(), text_config=text(), image_token_id=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return made("LlavaForConditionalGeneration", config, attention)


def omni(stem: str) -> Callable[[str], Any]:
    """Thinkers of Qwen2.5-Omni ("Qwen2_5Omni") and Qwen3-Omni ("Qwen3OmniMoe")."""

    def build(attention: str) -> Any:
        import transformers.models.qwen2_5_omni.configuration_qwen2_5_omni as second
        import transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe as third

        module = third if stem == "Qwen3OmniMoe" else second
        sound = dict(
            num_mel_bins=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=16,
            max_source_positions=64, n_window=4, output_dim=32,
        )  # fmt: skip
        vision = {k: v for k, v in TOWER.items() if k != "num_position_embeddings"}
        language: dict[str, Any] = dict(DENSE)
        if stem == "Qwen3OmniMoe":
            sound |= dict(n_window=50, n_window_infer=100, conv_chunksize=8, downsample_hidden_size=8)
            vision |= dict(deepstack_visual_indexes=[0, 2], num_position_embeddings=64)
            language |= EXPERTS
        else:
            vision |= dict(window_size=16, fullatt_block_indexes=[1, 3])
            del language["head_dim"]
        config = getattr(module, f"{stem}ThinkerConfig")(
            text_config=language, vision_config=vision, audio_config=sound, position_id_per_seconds=2,
            audio_start_token_id=AUDIO - 1, audio_end_token_id=AUDIO + 1,
        )  # fmt: skip
        for name, number in {
            "image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO, "vision_start_token_id": OPEN,
            "vision_end_token_id": CLOSE, "seconds_per_chunk": 2,
        }.items():  # fmt: skip
            setattr(config, name, number)
        return made(f"{stem}ThinkerForConditionalGeneration", config, attention)

    return build


def internvl_recent(attention: str) -> Any:
    """InternVL 3.5: a Qwen3 decoder."""
    from transformers import InternVLConfig, Qwen3Config

    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    config = InternVLConfig(
        vision_config=internvl_vision(), text_config=Qwen3Config(**{**DENSE, **rope}), image_token_id=IMAGE,
        downsample_ratio=0.5,
    )  # fmt: skip
    return made("InternVLForConditionalGeneration", config, attention)


def llama4(attention: str) -> Any:
    """Mixture of experts, layers without positions, chunked attention."""
    import transformers.models.llama4.modeling_llama4 as source
    from transformers import Llama4Config, Llama4TextConfig, Llama4VisionConfig

    returned = getattr(source, "MoeCausalLMOutputWithPast", None)
    if returned is not None and not hasattr(returned, "image_outputs"):
        returned.image_outputs = None  # the class of 5.24 reads this field of its language model and fails without
    vision = Llama4VisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
        vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    text = Llama4TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, intermediate_size_mlp=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=1,
        interleave_moe_layer_step=2, attention_chunk_size=256, max_position_embeddings=512, pad_token_id=PAD,
        bos_token_id=1, eos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    config = Llama4Config(
        vision_config=vision, text_config=text, image_token_index=IMAGE, boi_token_index=OPEN, eoi_token_index=CLOSE
    )
    model = made("Llama4ForConditionalGeneration", config, attention)
    tower = model.vision_model
    tower.positional_embedding_vlm.data.copy_(noise(5, *tower.positional_embedding_vlm.shape) / 5)
    return model


class MapAttention(torch.nn.Module):
    """Multi-query attention over a map, with the parts and names of timm's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.kv_stride, self.has_query_strides, self.scale = 4, 8, 1, False, 8**-0.5
        named = lambda wide, out: torch.nn.Sequential(OrderedDict(proj=torch.nn.Conv2d(wide, out, 1, bias=False)))
        self.query, self.key, self.value = named(width, 32), named(width, 8), named(width, 8)
        self.output = named(32, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.query(x).unflatten(1, (4, 8)).flatten(3)
        k, v = (part(x).flatten(2)[:, None] for part in (self.key, self.value))
        weights = (heads.transpose(-1, -2) @ k * self.scale).softmax(-1)
        return self.output((weights @ v.transpose(-1, -2)).transpose(-1, -2).flatten(1, 2).unflatten(2, x.shape[-2:]))


class Map(torch.nn.Module):
    """In place of the MobileNet of timm: the same container, [B, C, rows, columns], and attention at twice the
    resolution."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.patches = torch.nn.Conv2d(3, config.hidden_size, PATCH // 2, PATCH // 2)
        self.blocks = torch.nn.ModuleList(MapAttention(config.hidden_size) for _ in range(3))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModelOutput

        x = self.patches(pixel_values)
        for block in self.blocks:
            x = x + block(torch.nn.functional.normalize(x, dim=1))
        return TimmWrapperModelOutput(last_hidden_state=torch.nn.functional.avg_pool2d(x, 2))


def gemma3n_config(**vision: Any) -> Any:
    """The first ids are words, those from 68 on belong to pictures, the last four to sound."""
    from transformers import Gemma3nAudioConfig, Gemma3nConfig, Gemma3nTextConfig, Gemma3nVisionConfig

    text = Gemma3nTextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2, vocab_size_per_layer_input=68,
        hidden_size_per_layer_input=8, altup_num_inputs=2, laurel_rank=8, activation_sparsity_pattern=[0.0] * 4,
        pad_token_id=PAD, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    audio = Gemma3nAudioConfig(
        vocab_size=4, vocab_offset=76, input_feat_size=16, hidden_size=32, conf_num_attention_heads=4,
        conf_num_hidden_layers=1, sscp_conv_channel_size=(8, 8),
    )  # fmt: skip
    return Gemma3nConfig(
        text_config=text, audio_config=audio,
        vision_config=Gemma3nVisionConfig(**{"hidden_size": 32, "vocab_size": 8, "vocab_offset": 68, **vision}),
        image_token_id=IMAGE, boi_token_id=OPEN, eoi_token_id=CLOSE, audio_token_id=77, boa_token_id=78,
        eoa_token_id=79, vision_soft_tokens_per_image=16,
    )  # fmt: skip


def gemma3n(attention: str) -> Any:
    """Embeddings per layer, shared keys and values, sliding windows; a tower that needs no timm."""
    from transformers.models.gemma3n import modeling_gemma3n as source

    stock = source.AutoModel.from_config
    tower = lambda config: Map(config) if config.model_type == "gemma3n_vision" else stock(config)
    with mock.patch.object(source.AutoModel, "from_config", tower):
        return made("Gemma3nForConditionalGeneration", gemma3n_config(), attention)
