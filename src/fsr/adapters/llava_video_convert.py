"""From the published layout of LLaVA-Video (and of the original LLaVA-NeXT code) to the OneVision classes of
Transformers.

| published key | key in `LlavaOnevisionForConditionalGeneration` |
|---|---|
| `model.embed_tokens.*`, `model.layers.*`, `model.norm.*` | `model.language_model.` + the rest |
| `lm_head.weight` | the same |
| `model.image_newline` | the same |
| `model.mm_projector.0.*`, `model.mm_projector.2.*` | `model.multi_modal_projector.linear_1.*`, `.linear_2.*` |
| `model.vision_tower.vision_tower.vision_model.*` | `model.vision_tower.*` |

The published tower has 26 of SigLIP's 27 layers and no pooling head; keys of either, where a file has them, are left
out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fsr.errors import UsageError

__all__ = ["config_from_published", "convert", "rename"]

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = {"0": "linear_1", "2": "linear_2"}
SIGLIP = dict(
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16, image_size=384,
    patch_size=14, vision_use_head=False,
)  # fmt: skip


def rename(state: Mapping[str, Tensor], tower_layers: int) -> dict[str, Tensor]:
    """Published keys to those of Transformers.

    Raises:
        UsageError: a key of neither layout.
    """
    out = {}
    for key, value in state.items():
        if key == "lm_head.weight" or key == "model.image_newline":
            out[key] = value
        elif key.startswith(TOWER):
            rest = key[len(TOWER) :]
            layer = re.match(r"encoder\.layers\.(\d+)\.", rest)
            if not rest.startswith("head.") and not (layer and int(layer[1]) >= tower_layers):
                out[f"model.vision_tower.{rest}"] = value
        elif found := re.match(r"model\.mm_projector\.([02])\.(weight|bias)$", key):
            out[f"model.multi_modal_projector.{PROJECTOR[found[1]]}.{found[2]}"] = value
        elif re.match(r"model\.(embed_tokens|layers|norm)\.", key):
            out[f"model.language_model.{key[len('model.') :]}"] = value
        else:
            raise UsageError(f"{key} is no key of a published LLaVA-Video checkpoint.")
    return out


def config_from_published(published: Mapping[str, Any], vision: Mapping[str, Any] | None = None) -> Any:
    """`LlavaOnevisionConfig` with `llava_video_pool` from the `config.json` of a published checkpoint.

    vision: settings of the SigLIP tower, by default those of so400m/14 at 384 without its last layer.
    """
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    names = [
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
        "bos_token_id", "eos_token_id",
    ]  # fmt: skip
    text = Qwen2Config(**{n: published[n] for n in names if published.get(n) is not None})
    pool = published.get("mm_spatial_pool_mode", "average")
    if published.get("mm_newline_position", "grid") != "grid":
        raise UsageError("only mm_newline_position='grid' (a newline per row, as published) can be converted.")
    config = LlavaOnevisionConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(**(vision or SIGLIP)),
        image_token_index=published.get("image_token_index", 151646),
        video_token_index=published.get("video_token_index", 151647),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=published.get("image_grid_pinpoints") or [[384, 384]],
        tie_word_embeddings=bool(published.get("tie_word_embeddings", False)),
    )
    config.llava_video_pool = pool
    return config


def convert(source: str | Path, target: str | Path, vision: Mapping[str, Any] | None = None) -> Path:
    """Read a published checkpoint folder (`config.json`, `*.safetensors`) and write one that `from_pretrained` loads.

    Raises:
        UsageError: files missing, unknown keys, or weights that do not fill the model.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import LlavaOnevisionForConditionalGeneration

    source, target = Path(source), Path(target)
    shards = sorted(source.glob("*.safetensors"))
    if not (source / "config.json").is_file() or not shards:
        raise UsageError(f"{source} has no config.json or no *.safetensors: give a downloaded checkpoint folder.")
    config = config_from_published(json.loads((source / "config.json").read_text(encoding="utf-8")), vision)
    state: dict[str, Tensor] = {}
    for shard in shards:
        state |= rename(load_file(str(shard)), config.vision_config.num_hidden_layers)
    with torch.device("meta"):
        model: Any = LlavaOnevisionForConditionalGeneration(config)
    result = model.load_state_dict(state, strict=False, assign=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if result.unexpected_keys or set(result.missing_keys) - tied:
        raise UsageError(
            f"{source}: missing {sorted(set(result.missing_keys) - tied)[:3]}, unexpected {result.unexpected_keys[:3]}."
        )
    if tied:
        model.tie_weights()
    model.to(next(iter(state.values())).dtype)
    model.save_pretrained(target)
    return target
