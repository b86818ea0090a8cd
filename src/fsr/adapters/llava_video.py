"""LLaVA-Video (LLaVA-Video-7B-Qwen2) on the classes of LLaVA-OneVision, which hold the same modules.

What differs from OneVision's own video path: frames are pooled by averaging 2 x 2 patches (27 x 27 -> 13 x 13) or by
bilinear resizing
(14 x 14), and a newline ends every row of every frame, not every clip. The pooling belongs to the checkpoint or the
evaluation that one
compares with, so it is a field of the model's configuration: `config.llava_video_pool = "average"` (or "bilinear"),
which also is what tells
this family from OneVision. `llava_video_convert` writes both from a published checkpoint.

Frames come as pictures through the picture processor (`video_inputs`), so torchvision is not needed. The prompt has
one `<video>` per clip,
which becomes as many placeholders as tokens are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsr.adapters.base import Encoded, Modality, PatchHead
from fsr.adapters.llava_onevision import LlavaOnevisionAdapter
from fsr.adapters.packing import Channels, placeholder_runs
from fsr.adapters.registry import register
from fsr.errors import FeatureError, UsageError, counted

__all__ = ["LlavaVideoAdapter", "video_inputs"]


@register
class LlavaVideoAdapter(LlavaOnevisionAdapter):
    """Clips only differ; pictures are OneVision's. Budgets per clip, or per frame with `per="frame"`."""

    name = "llava-video"
    model_types = frozenset({"llava_onevision"})
    pools: ClassVar[tuple[str, ...]] = ("average", "bilinear")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        pool = self.model.config.llava_video_pool
        if pool not in self.pools:
            raise UsageError(f"config.llava_video_pool={pool!r}: use 'average' (13 x 13) or 'bilinear' (14 x 14).")

    def pool(self, frames: Tensor) -> Tensor:
        """[T, P, C] -> [T, h, w, C]."""
        planes = frames.transpose(1, 2).unflatten(2, (self.side, self.side))
        if self.model.config.llava_video_pool == "average":
            return nn.functional.avg_pool2d(planes, 2).permute(0, 2, 3, 1)
        small = ceil(self.side / 2)
        return nn.functional.interpolate(planes, size=(small, small), mode="bilinear").permute(0, 2, 3, 1)

    def with_newlines(self, frames: Tensor, newline: Tensor) -> Tensor:
        """[T, h, w, C] of one clip -> [T * h * (w + 1), C]."""
        ends = newline.to(frames).expand(*frames.shape[:2], 1, frames.shape[-1])
        return torch.cat([frames, ends], dim=2).flatten(0, 2)

    def pack(self, modality: Modality, channels: Channels, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Scores through the very function that `clips` sends features through."""
        if modality == "image":
            return super().pack(modality, channels, inputs)
        clips = self.pool(channels.value).unflatten(0, inputs["pixel_values_videos"].shape[:2])
        return [self.with_newlines(clip, channels.newline) for clip in clips]

    def features_of(self, modality: Modality, given: Mapping[str, Any]) -> Any:
        """OneVision's own video features, packed in LLaVA-Video's way instead: its tower and projector are run, its
        pooling is not."""
        if modality == "image":
            return super().features_of(modality, given)
        videos = given["pixel_values_videos"]
        config, base = self.model.config, self.base
        tower = base.vision_tower(videos.flatten(0, 1), return_dict=True, output_hidden_states=True)
        projected = base.multi_modal_projector(tower.hidden_states[config.vision_feature_layer])
        clips = self.pool(projected).unflatten(0, videos.shape[:2])
        tower.pooler_output = torch.stack([self.with_newlines(clip, base.image_newline) for clip in clips])
        return tower

    def _encode(
        self,
        modality: Modality,
        given: dict[str, Any],
        inputs: Mapping[str, Any],
        signals: frozenset[str],
        patch_layer: int,
        patch_head: PatchHead | None = None,
    ) -> Encoded:
        encoded = super()._encode(modality, given, inputs, signals, patch_layer, patch_head)
        if modality == "image":
            return encoded
        runs = placeholder_runs(inputs["input_ids"], self.placeholder_ids()["video"])
        if len(runs) != len(encoded.units):
            raise FeatureError(
                f"the prompt has {len(runs)} <video> for {counted(len(encoded.units), 'clip')}: give one for each."
            )
        return Encoded(
            encoded.modality, encoded.units, encoded.patches, encoded.output, encoded.timings,
            tuple(end - start for _, start, end in runs),
        )  # fmt: skip


def video_inputs(processor: Any, clips: Sequence[Sequence[Any]], texts: Sequence[str]) -> dict[str, Tensor]:
    """Prompts with one clip each from frames that are pictures.

    processor: has `image_processor`, `tokenizer` and `video_token` (LlavaOnevisionProcessor needs torchvision for its
        video part; any object
    with these three does). clips: per text the frames, all clips of one length (32 in the paper). texts: prompts with
    one `<video>` each.
    Returns `input_ids`, `attention_mask` and `pixel_values_videos` [B, T, 3, H, W].

    Raises:
        UsageError: clips and texts do not match, or clips differ in length.
    """
    if len(clips) != len(texts) or len({len(clip) for clip in clips}) != 1:
        raise UsageError("give one clip per text, all with the same number of frames.")
    if any(text.count(processor.video_token) != 1 for text in texts):
        raise UsageError(f"every text needs exactly one {processor.video_token}.")
    size = processor.image_processor.size
    side = (size["width"], size["height"])
    frames = [[frame.convert("RGB").resize(side) for frame in clip] for clip in clips]
    # One picture per call: tiles beyond the first (the whole frame) are not wanted.
    pixels = [
        torch.stack([processor.image_processor(f, return_tensors="pt")["pixel_values"].flatten(0, -4)[0] for f in clip])
        for clip in frames
    ]
    tokens = processor.tokenizer(list(texts), padding=True, return_tensors="pt")
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "pixel_values_videos": torch.stack(pixels),
    }
