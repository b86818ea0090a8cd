"""What a processor cuts off: tokens are drawn where they lie in the user's picture, for pictures and clips."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import families
import tiny
from fsr import FSR, prepare, prune
from fsr.asking.chat import chat_inputs
from fsr.cli import main
from fsr.drawing.kept_tokens import draw
from fsr.pipeline.center_crop import center_crop, placed
from fsr.tokens import CenterCrop, Geometry
from fsr.view.comparison import cropped_as_seen
from fsr.view.png import Cell, compose

QUESTION = "where is the cat ?"
METHOD = FSR(keep=4, relevance="none")


def ramp(width, height):
    """Red tells the column, green the row, blue that there is a picture at all."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 2 * width + 1)[1::2]
    pixels[..., 1] = np.linspace(0, 255, 2 * height + 1)[1::2, None]
    pixels[..., 2] = 255
    return Image.fromarray(pixels)


def wholly(cut, width, height):
    """Columns and rows of a processed ramp that lie inside the picture, as shares of the user's picture."""
    inside = cut[..., 2] > 254
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    middle = cut[rows[len(rows) // 2]], cut[:, columns[len(columns) // 2]]
    return (columns, middle[0][columns, 0] / 255), (rows, middle[1][rows, 1] / 255)


KINDS = {
    "crop": lambda edge, h, w: CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": h, "width": w}),
    "stretched": lambda edge, h, w: CLIPImageProcessorPil(
        size={"height": edge, "width": edge + 9}, crop_size={"height": h, "width": w}
    ),
    "not scaled": lambda edge, h, w: CLIPImageProcessorPil(do_resize=False, crop_size={"height": h, "width": w}),
    "square": lambda edge, h, w: LlavaImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, do_pad=True
    ),
}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(KINDS)), st.tuples(*[st.integers(24, 200)] * 2), st.integers(24, 60), st.data())
def test_the_window_is_what_real_processors_show(kind, size, edge, data):
    h, w = (data.draw(st.integers(edge - 8, edge + 8)) for _ in range(2))
    images = KINDS[kind](edge, h, w)
    made = images(ramp(*size), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    cut = np.moveaxis(made, 0, -1).astype(float)
    crop = center_crop(SimpleNamespace(image_processor=images))
    x0, y0, x1, y1 = crop.window(*size)
    for (where, share), start, end, n in zip(wholly(cut, *size), (x0, y0), (x1, y1), (cut.shape[1], cut.shape[0])):
        expected = start + (where + 0.5) / n * (end - start)
        inner = slice(2, -2) if len(where) > 8 else slice(len(where) // 2, len(where) // 2 + 1)
        assert np.abs(share - expected)[inner].max() < 1.6 / min(*size, edge)  # one pixel of rounding, and 8 bits


def test_processors_that_show_everything():
    tile = {"height": 32, "width": 32}
    for inner in (
        CLIPImageProcessorPil(do_center_crop=False),
        SimpleNamespace(),
        SimpleNamespace(do_center_crop=True, crop_size=tile, image_grid_pinpoints=[[32, 32]]),
        None,
    ):
        assert center_crop(SimpleNamespace(image_processor=inner)) is None
    assert center_crop(None) is None and center_crop(SimpleNamespace(image_processor=None), "video") is None


def test_boxes_in_the_user_s_picture():
    crop = CenterCrop(shortest=30, cut=(30, 30))
    where = Geometry.raster(1, 2)
    assert torch.equal(where.boxes_in(300, 100), where.boxes)
    found = Geometry(where.boxes, where.tile, where.frame, where.grid, crop)
    third = 1 / 3
    expected = torch.tensor([[third, 0, 0.5, 1], [0.5, 0, 2 * third, 1]])
    assert torch.allclose(found.boxes_in(300, 100), expected, atol=1e-6)
    assert torch.allclose(found.take(torch.tensor([1])).boxes_in(300, 100), expected[1:], atol=1e-6)


def lit(picture):
    """Columns of a drawing, by thirds, with outlines of kept tokens."""
    pixels = np.asarray(picture).astype(int)
    vivid = pixels.max(-1) - pixels.min(-1) > 90
    return [bool(part.any()) for part in np.array_split(vivid, 3, axis=1)]


def test_report_show_and_draw_leave_the_margins_dim(llava, processor):
    wide = Image.new("RGB", (300, 100), (90, 90, 90))
    inputs = chat_inputs(processor, wide, QUESTION)
    with torch.no_grad(), prune(llava, METHOD, processor=processor) as pruned:
        llava(**inputs)
    report, ready = pruned.last, prepare(llava, METHOD, inputs, processor=processor).report
    for drawn in (
        report.show(wide),
        ready.show(wide),
        draw(wide, report.selections[0]),
        prepare(llava, METHOD, inputs, processor=processor, call="forward").report.show(wide),
    ):
        assert lit(drawn.crop((0, 0, drawn.width, drawn.width // 3))) == [False, True, False]
    assert all(lit(report.show(size=60).crop((0, 0, 60, 60))))  # the raster alone has no margin
    # without a processor nothing is known of a crop: the part that it cuts out has to be given
    bare = prepare(llava, METHOD, inputs).report
    assert bare.selections[0].geometry.crop is None
    assert np.array_equal(
        np.asarray(bare.show(cropped_as_seen(processor, wide))),
        np.asarray(report.show(cropped_as_seen(processor, wide))),
    )


def test_frames_of_a_clip_are_cut_too():
    name = "llava-next-video"
    model, inputs = families.model_of(name), families.prompts(name, [(0, 1)])
    clips = SimpleNamespace(
        do_center_crop=True, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_resize=True
    )
    report = prepare(model, METHOD, inputs, processor=SimpleNamespace(video_processor=clips)).report
    assert report.selections[0].geometry.crop == CenterCrop(shortest=32, cut=(32, 32))
    frames = [Image.new("RGB", (300, 100), (90, 90, 90))] * 4
    drawn = draw(frames, report.selections[0], legend=False)
    plain = draw(frames, placed(report.selections[0], None), legend=False)
    assert not np.array_equal(np.asarray(drawn), np.asarray(plain))
    colours = np.asarray(drawn)[:, : drawn.width // 7].astype(int)  # the outer half of the left margin
    assert (colours.max(-1) - colours.min(-1)).max() < 90


def test_ask_saves_the_margins_dim(llava, tmp_path, capsys):
    llava.save_pretrained(tmp_path / "model")
    tiny.llava_processor().save_pretrained(tmp_path / "model")
    Image.new("RGB", (300, 100), (90, 90, 90)).save(tmp_path / "wide.png")
    words = [QUESTION, "--image", str(tmp_path / "wide.png"), "--model", str(tmp_path / "model"), "--keep", "4"]
    assert main(["ask", *words, "--relevance", "none", "--json", "--save", str(tmp_path / "kept.png")]) == 0
    assert json.loads(capsys.readouterr().out)["keep"] == 4
    drawn = Image.open(tmp_path / "kept.png")
    assert lit(drawn.crop((0, 0, drawn.width, drawn.width // 3))) == [False, True, False]


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (2, 600), (600, 2)])
def test_pictures_of_one_pixel_s_width_are_cut_to_one(processor, size):
    seen = cropped_as_seen(processor, Image.new("RGB", size, "red"))
    assert min(seen.size) >= 1 and seen.getcolors() == [(seen.width * seen.height, (255, 0, 0))]


def test_a_page_of_tall_pictures_stays_a_page():
    thin = Image.new("RGB", (4, 6000), "red")
    page = compose([[Cell(thin, "a", "b"), Cell(Image.new("RGB", (50, 20)), "c", "d")]], 120)
    assert page.height < 120 * 4 and (255, 0, 0) in [colour for _, colour in page.getcolors(1 << 20)]
