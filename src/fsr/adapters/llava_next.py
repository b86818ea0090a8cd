"""LLaVA-NeXT: any-resolution pictures with unpadding and newlines, and the setting of the paper's tables.

The papers of this field (FSR among them) report LLaVA-NeXT at 672 x 672: five tiles of 576 tokens, 2880 in all, no
newline and nothing unpadded. `five_tiles` brings a stock model and its processor into that setting for as long as a
`with` block lasts. Budgets there are counted per tile (192/128/64, `per="tile"`) or over the picture (960/640/320);
`Report.budgets` prints both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import LlavaNextProcessor

from fsr.adapters.anyres import AnyresAdapter
from fsr.adapters.registry import register
from fsr.errors import UsageError

__all__ = ["FiveTileProcessor", "LlavaNextAdapter", "five_tiles"]


@register
class LlavaNextAdapter(AnyresAdapter):
    """Everything is `AnyresAdapter`."""

    name = "llava-next"
    model_types = frozenset({"llava_next"})


class FiveTileProcessor(LlavaNextProcessor):
    """Resizes every picture to a square of 2 x 2 tiles (672 x 672 for a 336 tower) and counts no newlines."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """As the processor it was made from; pictures are PIL images."""
        if images is not None:
            images = self._square(images)
        return super().__call__(images=images, text=text, **kwargs)

    def _square(self, images: Any) -> Any:
        if isinstance(images, (list, tuple)):
            return [self._square(i) for i in images]
        return images.convert("RGB").resize(tuple(self.image_processor.image_grid_pinpoints[0]))

    def _get_unpadded_features(self, *sizes: Any) -> tuple[int, int]:
        return super()._get_unpadded_features(*sizes)[0], 0


@contextmanager
def five_tiles(model: Any, processor: Any) -> Iterator[FiveTileProcessor]:
    """The paper's setting of LLaVA-NeXT: pictures at 672 x 672, 5 tiles, 2880 tokens, no newline.

    Yields the processor to use inside the block; the model's own (and `processor`) are as before afterwards. The model
    is changed for every thread while the block lasts, and should not be saved inside it: its newline vector is taken
        off.

    Raises:
        UsageError: no LLaVA-NeXT.
    """
    if not LlavaNextAdapter.matches(model) or not isinstance(processor, LlavaNextProcessor):
        raise UsageError("five_tiles is a setting of LLaVA-NeXT: give such a model and its LlavaNextProcessor.")
    config, base = model.config, model.model
    side = config.vision_config.image_size
    pinpoints, newline = config.image_grid_pinpoints, base.image_newline
    images = type(processor.image_processor).from_dict(processor.image_processor.to_dict())
    images.image_grid_pinpoints = [[2 * side, 2 * side]]
    square = FiveTileProcessor(
        image_processor=images,
        tokenizer=processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=processor.num_additional_image_tokens,
    )
    config.image_grid_pinpoints, base.image_newline = [[2 * side, 2 * side]], None
    try:
        yield square
    finally:
        config.image_grid_pinpoints, base.image_newline = pinpoints, newline
