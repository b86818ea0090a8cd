"""One door for pictures: every mode, depth, orientation and transparency as a viewer shows it, or one clear line."""

import io
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import picture_files as files
from fsr import UsageError
from fsr.asking.images import MAX_PIXELS, bundled_scene, decode_image, open_image
from fsr.asking.rgb import to_rgb

EXACT = settings(max_examples=60, deadline=None, derandomize=True)
sides = st.integers(1, 24)


def pixels(data, name="x"):
    picture = decode_image(data, name)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey_files(grey):
    """name -> the file of the same grey levels at some depth; all must open to the very same 8 bits."""
    wide = grey.astype(np.uint16) * 257
    whole = {0, 255} <= set(grey.ravel().tolist())  # where no depth is written down, black and white must be there
    lines = [line.astype(">u2").tobytes() for line in wide]
    found = {
        "png8": files.saved(Image.fromarray(grey), "PNG"),
        "png16": files.saved(Image.fromarray(wide), "PNG"),
        "png16 by hand": files.png(lines, 16, 0),
        "pgm16": b"P5 %d %d 65535\n" % grey.shape[::-1] + b"".join(lines),
        "tiff8": files.saved(Image.fromarray(grey), "TIFF"),
    }
    if not whole:
        return found
    steps = grey.astype(np.uint32)
    return found | {
        "tiff16": files.tiff(wide),
        "tiff16 inverted": files.tiff(65535 - wide, inverted=True),
        "tiff10 in 16": files.tiff((steps << 2 | steps >> 6).astype(np.uint16)),
        "tiff12 in 16": files.tiff((steps << 4 | steps >> 4).astype(np.uint16)),
        "tiff14 in 16": files.tiff((steps << 6 | steps >> 2).astype(np.uint16)),
        "tiff16 signed": files.tiff((wide >> 1).astype(np.int16)),
        "tiff16 below zero": files.tiff((wide.astype(np.int32) - 32768).astype(np.int16)),
        "tiff32": files.tiff(steps * 0x01010101),
        "tiff16 in 32": files.tiff(wide.astype(np.uint32)),
        "tiff32 signed": files.tiff((steps * 0x01010101 >> 1).astype(np.int32)),
        "tiff32 below zero": files.tiff((steps.astype(np.int64) * 0x01010101 - 2**31).astype(np.int32)),
        "float to 1": files.tiff((grey / 255).astype(np.float32)),
        "float to 255": files.tiff(grey.astype(np.float32)),
        "float around zero": files.tiff((grey / 255 - 0.5).astype(np.float32)),
        "float to 65535": files.tiff(wide.astype(np.float32)),
    }


@EXACT
@given(st.integers(0, 10**6), sides, sides, st.booleans())
def test_deep_grey_is_scaled_to_8_bits(seed, height, width, full):
    grey = files.noise(seed, height, width)
    if full and grey.size > 1:
        grey.flat[0], grey.flat[-1] = 0, 255
    for name, data in grey_files(grey).items():
        assert np.array_equal(pixels(data), np.repeat(grey[..., None], 3, 2)), name


def test_a_scene_at_every_depth_keeps_its_levels():
    grey = np.asarray(bundled_scene().convert("L")).copy()
    grey[0, :2] = 0, 255
    made = grey_files(grey)
    assert len(made) == 20
    for name, data in made.items():
        assert np.array_equal(pixels(data)[..., 0], grey), name
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(to_rgb(deep))[..., 0], grey)  # without a file


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.25, np.nan, np.inf, 0.5, -np.inf]], np.float32), [64, 64, 64, 128, 64]),
        (np.full((1, 3), np.nan, np.float32), [0, 0, 0]),
        (np.full((1, 2), -7, np.int32), [0, 0]),
        (np.zeros((1, 2), np.uint16), [0, 0]),
    ],
)
def test_numbers_that_are_no_grey(values, expected):
    assert pixels(files.tiff(values))[0, :, 0].tolist() == expected


def alpha_files(colour, alpha):
    """name -> file of the same colours under the same alpha."""
    both = Image.fromarray(np.dstack([colour, alpha]))
    grey = Image.fromarray(np.dstack([colour[..., 0], alpha]))
    found = {f"RGBA {kind}": files.saved(both, kind) for kind in ("PNG", "TIFF", "TGA")}
    found["RGBA WebP"] = files.saved(both, "WEBP", lossless=True, exact=True)
    found["RGBA JPEG 2000"] = files.saved(both, "JPEG2000", irreversible=False)
    found |= {f"LA {kind}": files.saved(grey, kind) for kind in ("PNG", "TIFF")}
    wide = np.dstack([colour, alpha]).astype(">u2") * 257
    found["RGBA PNG 16"] = files.png([line.astype(">u2").tobytes() for line in wide], 16, 6)
    return found


@EXACT
@given(st.integers(0, 10**6), sides, sides, st.sampled_from(["any", "holes", "clear", "solid"]))
def test_transparency_lies_on_white(seed, height, width, how):
    colour, alpha = files.noise(seed, height, width, 3), files.noise(seed + 1, height, width)
    if how != "any":
        alpha = {"holes": (alpha > 99) * np.uint8(255), "clear": alpha * 0, "solid": alpha * 0 + 255}[how]
    for name, data in alpha_files(colour, alpha).items():
        shown = files.on_white(colour[..., 0] if name.startswith("LA") else colour, alpha)
        assert np.abs(pixels(data) - shown).max() <= 1, name


def test_black_ink_on_nothing_is_black_on_white_in_every_format():
    ink = np.zeros((40, 60, 4), np.uint8)
    ink[10:20, 5:50, 3] = 255
    picture = Image.fromarray(ink)
    made = {kind: files.saved(picture, kind) for kind in ("PNG", "WEBP", "TIFF", "GIF", "ICO", "AVIF", "TGA", "DDS")}
    made["ICO"] = files.saved(picture, "ICO", sizes=[(60, 40)])
    made["palette"] = files.saved(picture.quantize(4), "PNG")
    for name, data in made.items():
        seen = np.asarray(decode_image(data, name).resize((60, 40)))
        assert seen[0, 0].min() > 250 and seen[15, 20].max() < 8, name


def test_modes_that_only_memory_has():
    colour, alpha = files.noise(3, 6, 5, 3), np.full((6, 5), 255, np.uint8)
    alpha[2] = 0
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    grey = Image.fromarray(np.dstack([colour[..., 0], alpha]))
    for picture, ink in [(rgba.convert("RGBa"), colour), (grey.convert("La"), colour[..., 0]), (grey, colour[..., 0])]:
        assert np.abs(np.asarray(to_rgb(picture)) - files.on_white(ink, alpha)).max() <= 1, picture.mode
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX", "PA", "I", "F"):
        assert to_rgb(rgba.convert(mode)).mode == "RGB" and to_rgb(rgba.convert(mode)).size == (5, 6)


def test_one_clear_colour_counts_in_the_depth_of_the_file():
    """PNG names it in the file's depth, for pixels that Pillow brings to 8 bits."""
    rgb = [struct.pack(">6H", 65535, 0, 0, 0x1234, 0x5678, 0x9ABC)]
    assert pixels(files.png(rgb, 16, 2, rgb[0][6:])).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    grey = [struct.pack(">2H", 1000, 40000)]
    assert pixels(files.png(grey, 16, 0, struct.pack(">H", 1000)))[0, :, 0].tolist() == [255, 156]
    assert pixels(files.png([bytes([0x3F])], 4, 0, struct.pack(">H", 3)))[0, :, 0].tolist() == [255, 255]
    assert pixels(files.png([bytes([0x3F])], 4, 0, struct.pack(">H", 15)))[0, :, 0].tolist() == [51, 255]
    assert pixels(files.png([bytes([0b00011011])], 2, 0, b"\0\1"))[0, :, 0].tolist() == [0, 255, 170, 255]
    assert pixels(files.png([bytes([0b01010101])], 1, 0, b"\0\0"))[0, :, 0].tolist() == [255] * 8


entries = st.tuples(st.integers(0, 65535), st.integers(0, 20), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(files.ORIENTED)), st.lists(entries, max_size=4), st.sampled_from(["JPEG", "PNG", "WEBP"]))
@pytest.mark.filterwarnings("ignore")
def test_orientation_turns_the_pixels_whatever_else_the_block_says(orientation, others, kind):
    grey = np.kron(files.noise(orientation, 2, 3), np.ones((8, 8), np.uint8))
    block = files.exif(orientation, *(o for o in others if o[0] != 274))
    plain = Image.fromarray(np.dstack([grey] * 3))
    if kind == "JPEG":
        data = files.with_exif(files.saved(plain, "JPEG", quality=95), block)
    else:
        data = files.saved(plain, kind, exif=block, **({"lossless": True} if kind == "WEBP" else {}))
    shown = files.ORIENTED[orientation](grey)
    seen = pixels(data)[..., 0]
    assert seen.shape == shown.shape and np.abs(seen.astype(int) - shown).max() <= 12


@pytest.mark.parametrize("orientation", sorted(files.ORIENTED))
def test_a_resolution_that_is_no_number_and_tiff(orientation):
    scene = bundled_scene().crop((0, 0, 144, 96))
    shown = files.ORIENTED[orientation](np.asarray(scene))
    data = files.with_exif(files.saved(scene, "JPEG", quality=95), files.exif(orientation, files.BROKEN))
    assert np.abs(pixels(data).astype(int) - shown).mean() < 8
    grey = np.asarray(scene.convert("L"))
    turned = pixels(files.tiff(grey.astype(np.uint16) * 257, orientation=orientation))[..., 0]
    assert np.array_equal(turned, files.ORIENTED[orientation](grey))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    scene = bundled_scene()
    data = files.with_exif(files.saved(scene, "JPEG"), files.exif(orientation))
    assert np.array_equal(pixels(data), pixels(files.saved(scene, "JPEG")))


def samples():
    scene = bundled_scene().resize((24, 20))
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX", "JPEG2000", "AVIF", "SGI", "DDS")
    found = [files.saved(scene, kind) for kind in kinds]
    found += [files.saved(scene, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    return [*found, files.with_exif(found[1], files.exif(6, files.BROKEN))]


SAMPLES = samples()
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, len(SAMPLES) - 1), edits, st.floats(0.1, 1))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_open_or_are_one_line(which, changes, share):
    data = bytearray(SAMPLES[which])
    for place, value in changes:
        data[int(place * place * len(data))] = value  # mostly in the head
    data = bytes(data[: max(1, int(share * len(data)))])
    try:
        assert decode_image(data, "stranger.bin").mode == "RGB"
    except UsageError as error:
        assert "stranger.bin" in str(error) and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore")
def test_no_picture_too_large_or_a_program(tmp_path):
    held = files.saved(Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)), "PNG")
    with pytest.raises(UsageError, match="smaller than 50 megapixels"):
        decode_image(held, "x")
    with pytest.raises(UsageError, match="PostScript"):
        decode_image(files.saved(bundled_scene(), "EPS"), "x")
    # an icon of 16 x 16 that holds a picture of another size
    icon = struct.pack("<3H4B2HII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(held), 22) + held
    with pytest.raises(UsageError, match="smaller than 50 megapixels"):
        decode_image(icon, "x")
    for path in (tmp_path, tmp_path / "none.png", "a" * 5000, "~nobody-of-this-name/x.png", "nul\0.png"):
        with pytest.raises(UsageError):
            open_image(path)


def test_only_the_first_of_several(tmp_path):
    scenes = [bundled_scene(i) for i in (1, 2, 3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = files.saved(scenes[0], kind, save_all=True, append_images=scenes[1:])
        assert np.abs(pixels(data).astype(int) - np.asarray(scenes[0])).mean() < 12, kind
    file = tmp_path / "scene.png"
    scenes[1].save(file)
    assert np.array_equal(np.asarray(open_image(os.fspath(file))), np.asarray(scenes[1]))
    assert np.array_equal(pixels(io.BytesIO(file.read_bytes()).getvalue()), np.asarray(scenes[1]))
