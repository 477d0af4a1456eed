"""Encoded images to pixels, with explicit rules; the bytes may come from someone we do not trust."""

import io
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from neural_polarizer.errors import BadInputError, EnvironmentFaultError, one_line

MAX_PIXELS = 50_000_000  # of one image, below the size at which Pillow begins to warn of bombs
MAX_BYTES = 512_000_000  # of one encoded image: 50 MP of 16-bit RGBA, uncompressed, and then some
BATCH_BYTES = 32 << 20  # of encoded images in memory at once
MAX_SCANS = 100  # of a progressive JPEG of MAX_PIXELS; a smaller image may have more: the time counts
THREADS_PAY_FROM = 4_000  # bytes; GTSRB's 2 kB images decode twice as fast without threads
FORMATS = "PNG, JPEG, WebP, BMP, GIF, binary PPM or TIFF"
SUFFIXES = frozenset(
    ".png .jpg .jpeg .jfif .jpe .jif .pjpeg .pjp .webp .bmp .gif .ppm .pgm .pbm .pnm .tif .tiff".split()  # noqa: SIM905
)


class Pixels(NamedTuple):
    """One image."""

    values: np.ndarray  # uint8 ``(h, w, 3)``
    transparent: bool  # whether some pixels were
    size: tuple[int, int]  # height and width before it was resized


class Pictures(NamedTuple):
    """Images in one tensor."""

    pixels: UInt8[Tensor, "n 3 h w"]
    transparent: int  # how many had transparent pixels
    size: tuple[int, int] | None  # height and width of all of them before they were resized; None if they differed


Source = bytes | Path | Image.Image
"""An image still encoded, in a file, or opened by a trusted library."""

# The plug-ins are called by first bytes rather than through Image.open(), whose bomb warning could be made an
# error only for the whole process (warning filters are not thread-safe).
_PLUGINS: tuple[tuple[tuple[bytes, ...], type[ImageFile]], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    ((b"\xff\xd8\xff",), JpegImageFile),
    ((b"BM",), BmpImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    ((b"P4", b"P5", b"P6"), PpmImageFile),  # in text form, a cut within the last number would go unseen
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
)
_SCAN = b"\xff\xda"
_OF_ORIENTATION = frozenset(("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"))
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


def decode(data: bytes, *, size: tuple[int, int] | None, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode one image.

    Rules: grey becomes three equal channels; 16 bits keep the high byte; palettes and CMYK become RGB; alpha
    is composited over black and dropped; the EXIF orientation is applied; of an animation the first frame
    counts; resizing is Pillow's bilinear, which averages when it shrinks, and ignores the aspect ratio.

    Shape: uint8 ``(h, w, 3)`` in 0..255, of the height and width ``size``; None keeps the image's own.

    Raises:
        BadInputError: not one of ``FORMATS``, over ``MAX_PIXELS``, truncated, or damaged.
        EnvironmentFaultError: out of memory.
    """
    return decoded(data, size=size, where=where).values


def decoded(source: Source, *, size: tuple[int, int] | None, where: str) -> Pixels:
    """``decode`` of any source."""
    try:
        if isinstance(source, Path):
            source = _content(source, where)
        return _pixels(_open(source) if isinstance(source, bytes) else source, size)
    except MemoryError:
        raise EnvironmentFaultError(f"{where}: out of memory while decoding; free some and run again") from None
    except Exception as error:  # noqa: BLE001, RUF100  the plug-ins raise nearly every kind on hostile bytes
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(f"{where}: cannot be used as an image ({one_line(error)})") from None


def _content(path: Path, where: str) -> bytes:
    try:
        told = path.stat()
        if not stat.S_ISREG(told.st_mode):  # a device or a pipe has no end
            raise BadInputError(f"{where}: not a regular file")
        if told.st_size > MAX_BYTES:
            raise BadInputError(f"{where}: over {MAX_BYTES} bytes, too large for an image")
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{where}: cannot be read ({error.strerror})") from None


def height_and_width(size: Any) -> tuple[int, int]:
    """A height and a width, from two numbers or from one for both.

    Raises:
        BadInputError: they are none, or more than an image may have.
    """
    found: list[Any] = list(size) if isinstance(size, (tuple, list)) else [size, size]
    if len(found) != 2 or not all(type(n) is int and n >= 1 for n in found) or found[0] * found[1] > MAX_PIXELS:
        raise BadInputError(f"size must be a height and width of at least 1 and {MAX_PIXELS} pixels, got {size!r}")
    return found[0], found[1]


def transparency_note(source: str, transparent: int, count: int) -> tuple[str, ...]:
    """What the user should know if so many of ``count`` images had transparent pixels; nothing if none had."""
    if transparent == 0:
        return ()
    return (
        f"{source}: {transparent} of {count} images have transparent pixels, which were put on black; torchvision's "
        'convert("RGB") shows the colours that they hide instead, so if the model was trained on these, convert the '
        "images to RGB first",
    )


def resized_note(source: str, found: Pictures) -> tuple[str, ...]:
    """What the user should know of images of one size that the model does not take; nothing of photographs."""
    now = tuple(found.pixels.shape[2:])
    if found.size in (None, now):
        return ()
    was, made = (f"{height}x{width}" for height, width in (found.size, now))
    return (f"{source}: all images have {was} pixels and were resized to {made}, which can blur a small trigger",)


def decode_all(
    items: Iterable[tuple[Source, str]], count: int, *, size: tuple[int, int] | None, source: str
) -> Pictures:
    """Decode ``count`` (image, name) pairs into one tensor, a few at a time on threads.

    Beyond that tensor, no more than one decoded image a thread is in memory at once.

    Raises:
        BadInputError: an image cannot be decoded, or ``size`` is None and the images differ in size.
        EnvironmentFaultError: the pixels do not fit into memory.
    """
    remaining = enumerate(islice(items, count))
    _, (first, name) = next(remaining, (0, (None, "")))
    if first is None:
        raise BadInputError(f"{source}: expected {count} images, found 0")
    image = decoded(first, size=size, where=name)
    pixels, own = _allocate(count, image.values, source), {image.size: name}
    done, transparent = 1, int(image.transparent)
    pixels[0] = image.values.transpose(2, 0, 1)

    def place(item: tuple[int, tuple[Source, str]]) -> tuple[tuple[int, int], bool]:
        index, (encoded, where) = item
        image = decoded(encoded, size=size, where=where)
        if image.values.shape[:2] == pixels.shape[2:]:
            pixels[index] = image.values.transpose(2, 0, 1)
        return image.size, image.transparent

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        while batch := _batch(remaining):
            small = all(isinstance(item, bytes) and len(item) < THREADS_PAY_FROM for _, (item, _) in batch)
            placed = (map if small else pool.map)(place, batch)
            for (_, (_, where)), (shape, seen_through) in zip(batch, placed, strict=True):
                if len(own) < 4:
                    own.setdefault(shape, where)
                transparent += seen_through
                done += 1
            if size is None and len(own) > 1:
                found = ", ".join(f"{h}x{w} ({where})" for (h, w), where in own.items())
                raise BadInputError(
                    f"{source}: the images differ in size, for example {found}; pass a size to resize them to"
                )
    if done != count:
        raise BadInputError(f"{source}: expected {count} images, found {done}")
    return Pictures(torch.from_numpy(pixels), transparent, next(iter(own)) if len(own) == 1 else None)


def _batch(items: Iterator[tuple[int, tuple[Source, str]]]) -> list[tuple[int, tuple[Source, str]]]:
    """The next few hundred, or fewer where they are large."""
    batch: list[tuple[int, tuple[Source, str]]] = []
    held = 0
    for item in items:
        batch.append(item)
        held += len(item[1][0]) if isinstance(item[1][0], bytes) else 0
        if len(batch) == 256 or held > BATCH_BYTES:
            break
    return batch


def _allocate(count: int, image: np.ndarray, source: str) -> np.ndarray:
    shape = (count, 3, *image.shape[:2])
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError:
        raise EnvironmentFaultError(
            f"{source}: {count} images of {shape[2]}x{shape[3]} do not fit into memory; pass a smaller size or a limit"
        ) from None


def _open(data: bytes) -> ImageFile:
    """Parse the header, refuse what is too large, and prove that a PNG has all its rows."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        image: ImageFile = WebPImageFile(io.BytesIO(data))
    else:
        plugin = next((plugin for magic, plugin in _PLUGINS if data.startswith(magic)), None)
        if plugin is None:
            raise ValueError(f"not {FORMATS}" if data else "the file is empty")
        image = plugin(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, over the cap of {MAX_PIXELS // 10**6} million")
    if isinstance(image, PngImageFile):
        _check_png(data)
    if isinstance(image, JpegImageFile) and data.count(_SCAN) * image.width * image.height > MAX_SCANS * MAX_PIXELS:
        raise ValueError("the JPEG has too many scans")
    return image


def _check_png(data: bytes) -> None:
    """Refuse a PNG that ends early; Pillow itself shows rows that are missing as black and says nothing."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 1, 0, 1),)
    shapes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, dx, y, dy in passes]
    missing = sum(h * (1 + -(-w * bits // 8)) for w, h in shapes if w > 0 and h > 0)
    inflate, at, kind = zlib.decompressobj(), 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError("the PNG is truncated")
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"IDAT" and data[at + 8 + length : at + 12 + length] != zlib.crc32(kind + body).to_bytes(4, "big"):
            raise ValueError("the PNG is truncated or damaged: a checksum does not fit")
        while kind == b"IDAT" and body and missing > 0:
            missing -= len(inflate.decompress(body, 1 << 24))
            body = inflate.unconsumed_tail
        at += 12 + length
    if missing > 0:
        raise ValueError("the PNG is truncated: rows are missing")


def _pixels(image: Image.Image, size: tuple[int, int] | None) -> Pixels:
    image.load()
    may_be_turned = image.format == "TIFF" or image.info.keys() & _OF_ORIENTATION
    rgb, transparent = _to_rgb(ImageOps.exif_transpose(image) if may_be_turned else image)
    own = (rgb.height, rgb.width)
    if size not in (None, own):
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return Pixels(np.asarray(rgb), transparent, own)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture in RGB, and whether some pixels were transparent."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, False
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PPM to 16 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"), False
    if image.mode in {"I", "F"}:
        raise ValueError("32-bit and floating-point pixels have no agreed range; save as 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (0, 0, 0, 255))
    canvas.alpha_composite(layer)
    return canvas.convert("RGB"), bool((np.asarray(layer.getchannel("A")) < 255).any())
