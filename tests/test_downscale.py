"""Downscale: the processor's own resolution, turned down inside the block and back behind it."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import families
from family_models import CLOSE, IMAGE, OPEN
from fsr import FSR, prepare, prune
from fsr.errors import BudgetError, FSRError, UnsupportedModelError, UsageError
from fsr.methods import Downscale, FastV
from fsr.pipeline.resolution import Resolution

NAME = "qwen2.5-vl"
PLAIN = dict(relevance="none")


class Processor:
    """Only what `Downscale` needs: an image processor of this tiny model's patches."""

    def __init__(self, images):
        self.image_processor = images


def qwen(model, most=10**6):
    vision = model.config.vision_config
    return Processor(
        Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
            size={"shortest_edge": 16, "longest_edge": most},
        )
    )


def inputs_of(processor, model, picture):
    made = processor.image_processor(images=[picture], return_tensors="pt")
    count = int(made["image_grid_thw"].prod()) // model.config.vision_config.spatial_merge_size**2
    ids = torch.tensor([[20, 21, OPEN, *[IMAGE] * count, CLOSE, 22, 23]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        **made,
    }


@pytest.fixture
def model():
    return copy.deepcopy(families.model_of(NAME))


def test_pictures_come_in_smaller_and_go_back(model):
    processor, picture = qwen(model), Image.new("RGB", (160, 120), "red")
    side = model.config.vision_config.patch_size * model.config.vision_config.spatial_merge_size
    whole = inputs_of(processor, model, picture)
    before = copy.deepcopy(processor.image_processor.to_dict())
    with prune(model, Downscale(pixels=40 * side * side) | FSR(keep=4, **PLAIN), processor=processor) as pruned:
        small = inputs_of(processor, model, picture)
        model.generate(**small, max_new_tokens=2, do_sample=False)
        assert (pruned.last.tokens_before, pruned.last.tokens_after) == (small["input_ids"].shape[1] - 6, 4)
        with pytest.raises(UsageError, match="inside the `with` block"):
            model.generate(**whole, max_new_tokens=2, do_sample=False)
    assert pruned.last.tokens_before <= 40 < whole["input_ids"].shape[1] - 6
    assert processor.image_processor.to_dict() == before
    assert torch.equal(inputs_of(processor, model, picture)["image_grid_thw"], whole["image_grid_thw"])


def test_alone_it_prunes_nothing_else(model):
    processor, picture = qwen(model), Image.new("RGB", (160, 120), "blue")
    with torch.no_grad(), prune(model, Downscale(pixels=2000), processor=processor):
        small = inputs_of(processor, model, picture)
        inside = model(**small).logits
    with torch.no_grad():
        assert torch.equal(inside, model(**small).logits)


def test_with_drops_inside_the_language_model(model):
    processor = qwen(model)
    chain = Downscale(pixels=4000) | FSR(keep=6, **PLAIN) | FastV(layer=1, keep=3)
    assert chain.name == "downscale | fsr | fastv"
    assert chain == Downscale(pixels=4000) | (FSR(keep=6, **PLAIN) | FastV(layer=1, keep=3))
    with prune(model, chain, processor=processor) as pruned:
        model.generate(**inputs_of(processor, model, Image.new("RGB", (160, 120))), max_new_tokens=2)
    assert [len(r) for r in pruned.last.in_llm.drops[-1].rows] == [3]


def test_an_error_inside_gives_the_processor_back(model):
    processor = qwen(model)
    before = processor.image_processor.to_dict()
    with pytest.raises(KeyError), prune(model, Downscale(pixels=2000), processor=processor):
        raise KeyError
    assert processor.image_processor.to_dict() == before


def test_twice_is_refused_and_leaves_the_first(model):
    processor, other = qwen(model), copy.deepcopy(model)
    with prune(model, Downscale(pixels=2000), processor=processor):
        small = processor.image_processor.size["longest_edge"]
        with pytest.raises(UsageError, match="turned down already"), prune(other, Downscale(9000), processor=processor):
            pass
        assert processor.image_processor.size["longest_edge"] == small == 2000
        assert "generate" not in other.__dict__


def test_gemma_4_has_five_sizes():
    images = Gemma4ImageProcessorPil()
    picture = Image.new("RGB", (1600, 1200), "green")
    side = images.patch_size * images.pooling_kernel_size
    bound = Resolution(Processor(images), 200 * side * side)
    bound.apply()
    assert images.max_soft_tokens == 140
    small = images(images=[picture], return_tensors="pt")
    bound.check(small)
    bound.restore()
    assert images.max_soft_tokens == 280
    with pytest.raises(UsageError, match="inside the `with` block"):
        bound.check(images(images=[picture], return_tensors="pt"))
    with pytest.raises(UnsupportedModelError, match="smallest size here"):
        Resolution(Processor(images), 69 * side * side)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: Downscale(0), BudgetError, "positive whole number"),
        (lambda m: Downscale(0.5), BudgetError, "positive whole number"),
        (lambda m: FSR(keep=4) | Downscale(9000), UsageError, "before the vision tower"),
        (lambda m: Downscale(9000) | Downscale(9000), UsageError, "FSR"),
        (lambda m: Downscale(9000) | "fsr", UsageError, "no pruning method"),
        (lambda m: prune(m, Downscale(9000) | FSR(keep=4, **PLAIN)), UsageError, "pass processor"),
        (lambda m: prune(m, Downscale(3), processor=qwen(m)), UnsupportedModelError, "one token of this model"),
        (
            lambda m: prune(m, Downscale(9000), processor=Processor(CLIPImageProcessorPil())),
            UnsupportedModelError,
            "sizes of its own",
        ),
        (lambda m: prepare(m, Downscale(9000) | FSR(keep=4), {}), FSRError, "prune"),
    ],
)
def test_refusals_are_one_line(model, make, error, words):
    with pytest.raises(error, match=words) as caught:
        make(model)
    assert len(str(caught.value).splitlines()) == 1
    assert "generate" not in model.__dict__
