"""Picture files of every kind that tests open: grey and colour at every depth, alpha, orientation, broken metadata."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTED = {  # what a viewer does with the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def saved(picture, kind, **options):
    """The bytes of a file of this kind."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(pixels, depth, colour_type, clear=None):
    """A PNG by hand. pixels: the packed bytes of each line."""
    height, width = len(pixels), len(pixels[0]) * 8 // depth // {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    chunks += [] if clear is None else [(b"tRNS", clear)]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in pixels))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(values, inverted=False, orientation=1):
    """A grey TIFF of one strip with the numbers as they are: any integer or floating type."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8 * values.dtype.itemsize), (259, 3, 1)]
    tags += [(262, 3, 0 if inverted else 1), (273, 4, 8), (274, 3, orientation), (277, 3, 1), (278, 4, height)]
    tags += [(279, 4, len(data)), (339, 3, kind)]
    entries = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def exif(orientation, *others):
    """An EXIF block: orientation, and further entries (tag, type, count, value or offset) that may make no sense."""
    entries = [(274, 3, 1, orientation), *others]
    block = b"II*\0" + struct.pack("<IH", 8, len(entries))
    block += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return block + bytes(4) + struct.pack("<ii", -1, 0)


BROKEN = (0x11A, 10, 1, 38)  # XResolution as a signed rational, -1/0, behind a block of two entries


def with_exif(jpeg, block):
    """A JPEG with this EXIF block, whatever it holds."""
    head = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0"
    return jpeg[:2] + head + block + jpeg[2:]


def noise(seed, height, width, channels=None):
    """Smooth random pixels, uint8, from black to white."""
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def on_white(colour, alpha):
    """uint8 [H, W, C] or [H, W] under alpha [H, W], laid on white, in floating point."""
    a = alpha.astype(float)[..., None] / 255
    colour = colour[..., None] if colour.ndim == 2 else colour
    return np.broadcast_to(colour * a + 255 * (1 - a), (*alpha.shape, 3))


def image(array, mode=None):
    """An array as a picture of this mode."""
    picture = Image.fromarray(array)
    return picture if mode is None else picture.convert(mode)
