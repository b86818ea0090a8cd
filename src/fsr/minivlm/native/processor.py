"""`mini-qwen3`'s processor: Qwen3-VL's own for still pictures, which needs no torchvision, and a check of their size.

Transformers can only build a `Qwen3VLProcessor` with its video part, which needs torchvision. The saved folder holds
all of it, so that engines load the stock class; this one reads the same folder and leaves the video part out.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLImageProcessorPil, Qwen3VLProcessor

from fsr.errors import PictureError, UsageError
from fsr.minivlm.native.build import CHAT_TEMPLATE, MERGE, PATCH, qwen3_tokenizer
from fsr.minivlm.train_vision import MEAN, STD

__all__ = ["MOST_TOKENS", "SIDES", "StillsProcessor", "build_processor", "picture_processor", "video_settings"]

SIDES = (96, 416)  # pixels per side that training covered, and half a cell more
MOST_TOKENS = 400
_AREA = (PATCH * MERGE) ** 2


class StillsProcessor(Qwen3VLProcessor):  # type: ignore[misc]
    """Pictures and text to `input_ids`, `pixel_values`, `image_grid_thw` and `mm_token_type_ids`; one visual token per
    16 x 16 pixels. It knows no videos and refuses pictures of sizes that the model was never shown."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = tokenizer.image_token, "<|video_pad|>"
        self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        for name in ("image", "video", "vision_start", "vision_end"):
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(getattr(self, f"{name}_token")))
        super(Qwen3VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """See `Qwen3VLProcessor`.

        Raises:
            UsageError: a video. PictureError: a picture whose size the model does not know.
        """
        if videos is not None:
            raise UsageError("mini-qwen3 was trained on still pictures: give a picture, not a video.")
        for picture in _pictures(images):
            _check(*picture.size)
        return super().__call__(images=images, text=text, **kwargs)


def _pictures(images: Any) -> list[Any]:
    if isinstance(images, (list, tuple)):
        return [p for i in images for p in _pictures(i)]
    return [images] if hasattr(images, "size") and isinstance(images.size, tuple) else []


def _check(width: int, height: int) -> None:
    """Refuse a picture that would have to be scaled, or is narrower or longer than any in training."""
    low, high = SIDES
    tokens = round(width / 16) * round(height / 16)
    if not (low <= min(width, height) and max(width, height) <= high and tokens <= MOST_TOKENS):
        raise PictureError(
            f"the picture has {width} x {height} pixels: mini-qwen3 knows pictures of {low} to {high} pixels per side "
            f"and at most {MOST_TOKENS * _AREA:,} pixels in all; resize or crop it."
        )


def picture_processor() -> Qwen2VLImageProcessorPil:
    """Native resolution: sides are rounded to 16 pixels, nothing else is scaled up to 400 visual tokens."""
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 36 * _AREA, "longest_edge": MOST_TOKENS * _AREA},
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=MERGE,
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def video_settings() -> dict[str, Any]:
    """What the stock processor wants to know about videos, which the model was not trained on."""
    edges = {"shortest_edge": 36 * _AREA, "longest_edge": MOST_TOKENS * _AREA}
    return {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": edges,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def build_processor() -> StillsProcessor:
    """The processor from nothing."""
    return StillsProcessor(picture_processor(), qwen3_tokenizer(), chat_template=CHAT_TEMPLATE)
