"""How the twins of `class_twins` are made small: sizes by the names of config fields, and what single classes need."""

from __future__ import annotations

from typing import Any

VOCAB, PAD, PICTURE, CLIP, OPEN, CLOSE = 128, 0, 100, 101, 102, 103
SIDE, PATCH, MERGE = 32, 8, 2
SIZES = [  # the first pattern that a field's whole name matches
    (r".*vocab_size(_per_layer_input)?", VOCAB),
    (r"num_hidden_layers|depth|num_layers|n_layers?|(en|de)coder_layers|num_encoder_layers|num_hidden_layers_\w+", 2),
    (r"(encoder_|decoder_|vision_)?(num_attention_heads|num_heads|n_heads?|attention_heads)", 4),
    (r"num_(global_)?(key_value|kv)_heads|linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"(\w+_)?head_dim|qk_\w+_dim|v_head_dim", 8),
    (r"\w*lora_rank", 16),
    (r"hidden_size_per_layer_input", 8),
    (r"\w*(intermediate_size|ffn_dim|mlp_dim|inner_dim|ffn_hidden_size|intermediate_dim)", 64),
    (r"(\w+_)?(hidden_size|d_model|embed_dim|dim|width|hidden_dim|output_dim|out_dim|proj_dims|embedding_dim)", 32),
    (r"\w*image_size|img_size", SIDE),
    (r"\w*patch_size(?<!temporal_patch_size)", PATCH),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|top_k_experts|moe_k|moe_topk|moe_top_k", 2),
    (r"n_group|topk_group", 1),
    (r"num_position_embeddings|position_embedding_size", 64),
    (r"max_position_embeddings", 512),
    (r"sliding_window", 64),
    (r"fullatt_block_indexes", [1]),
    (r"image_token_(id|index)|im(age|g)_patch_id|image_patch_token_id", PICTURE),
    (r"video_token_(id|index)", CLIP),
    (r"(vision|image)_start_token_id|boi_token_(id|index)", OPEN),
    (r"(vision|image)_end_token_id|eoi_token_(id|index)", CLOSE),
    (r"audio_token_(id|index)", 104),
    (r"pad_token_id", PAD),
    (r"bos_token_id", 1),
    (r"eos_token_id", None),
]
# Fields that the rules above get wrong for a class, by the dotted path of the config that holds them.
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
HALF = {**MROPE, "partial_rotary_factor": 1.0}
CODE = 105  # the first of 16 codes of a picture, where a picture is a row of codes
CODES = dict(base_channels=32, latent_channels=32, embed_dim=32, num_res_blocks=1)
BESIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "glm_ocr": {"text_config.rope_parameters": HALF},
    "glm5_next": {"text_config.num_key_value_heads": 4, "text_config.qk_rope_head_dim": 0},
    "paddleocr_vl": {"text_config.rope_parameters": MROPE},
    "granite_docling": {"vision_config.image_size": 4 * SIDE},
    "step3p7": {"vision_config.image_size": 4 * SIDE, "text_config.sliding_window": 64},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "cohere_compass": {
        "text_config.layer_types": ["full_attention", "sliding_attention"],
        "text_config.rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE},
    },
    "llama4": {"vision_config.intermediate_size": 128},
    "molmo2": {
        "adapter_config.vision_feature_layer": [-1, -2],
        "vision_config.image_size": [32, 32],
        "vision_config.num_position_embeddings": 16,
    },
    "dots3_note": {"text_config.num_key_value_heads": 4, "audio_config.adapter_input_size": 32},
    "hunyuan_vl": {"text_config.rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}, "text_config.head_dim": 8},
    "gemma4_unified": {
        "vision_config": dict(
            patch_size=8, pooling_kernel_size=1, mm_embed_dim=32, mm_posemb_size=64, output_proj_dims=32
        ),
        "audio_config": None,
    },
    "qwen4_exp": {
        "text_config.rope_parameters": MROPE,
        "text_config.indexer_n_heads": 4,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 8,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
    },
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "ernie4_5_vl_moe": {"text_config.moe_intermediate_size": [64, 64], "text_config.rope_parameters": MROPE},
    "emu3": {
        "vocabulary_map": {
            "<image>": PICTURE,
            "<|extra_200|>": CODE + 16,
            **{f"<|visual token {i:06d}|>": CODE + i for i in range(16)},
        },
        "vq_config": {**CODES, "codebook_size": 16, "channel_multiplier": [1, 1, 1], "hidden_size": 32},
    },
    "chameleon": {
        "vocabulary_map": {
            "<image>": PICTURE,
            **{"IMGIMG" + "".join(chr(65 + int(d)) for d in str(i)) + "Z": CODE + i for i in range(16)},
        },
        "vq_config": {**CODES, "num_embeddings": 16, "channel_multiplier": [1, 1, 1, 1], "resolution": SIDE},
    },
    "apertus1p5": {
        "image_token_offset": CODE,
        "audio_token_offset": CODE + 16,
        "vision_config": {
            **CODES, "codebook_size": 16, "channel_multiplier": [1, 1, 1], "resolution": SIDE, "attn_resolutions": [8]
        },
        "audio_config.codebook_size": 4,
    },
    "got_ocr2": {"vision_config.image_size": 2 * SIDE},
    "pp_chart2table": {"vision_config.image_size": 2 * SIDE},
    "fast_vlm": {
        "vision_config.architecture": "test_convnext",
        "vision_config.hidden_size": 64,
        "vision_config.model_args": None,
        "vision_config.image_size": 4 * SIDE,
    },
    "perception_lm": {
        "vision_config.architecture": "test_vit",
        "vision_config.model_args": {"img_size": [SIDE, SIDE], "embed_dim": 64, "depth": 2, "patch_size": 8},
    },
    "kimi_k25": {
        "vision_config.pos_emb_height": 8,
        "vision_config.pos_emb_width": 8,
        "text_config.num_key_value_heads": 4,
    },
    "mistral_large4": {"text_config.num_key_value_heads": 4},
    "deepseek_ocr2": {
        "vision_config.sam_config.downsample_channels": [32, 32],
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
        "text_config.n_group": 1,
        "text_config.topk_group": 1,
    },
    "deepseek_vl_hybrid": {"high_res_vision_config.global_attn_indexes": [0, 1]},
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "granite4_vision": {
        "deepstack_layer_map": [[-2, 0], [-1, 1]],
        "vision_config.hidden_size": 64,
        "downsample_rate": "2/4",
        "image_grid_pinpoints": [[SIDE, SIDE]],
    },
    "unlimited_ocr": {
        "vision_config.sam_config.downsample_channels": [32, 32],
        "vision_config.sam_config.image_size": 8 * SIDE,
        "vision_config.encoder_config.image_size": 8 * SIDE,
    },
}  # fmt: skip
