import os
import struct
import weakref
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from image_bytes import encoded
from PIL import Image

from neural_polarizer.data import decode as decode_module
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.data.decode import THREADS_PAY_FROM, Pixels, decode, decode_all
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: int, *, interlaced: bool = False) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, int(interlaced))
    body = zlib.compress(bytes((width * 3 + 1) * rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def one(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    return decode(data, size=size, where="a.img")


RGB = Image.fromarray(PIXELS)
OTHER = RGB.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
LOSSLESS: dict[str, bytes] = {
    "png": encoded(RGB, "PNG"),
    "webp": encoded(RGB, "WEBP", lossless=True),
    "bmp": encoded(RGB, "BMP"),
    "ppm": encoded(RGB, "PPM"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff-lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "png-animated": encoded(RGB, "PNG", save_all=True, append_images=[OTHER]),
    "webp-animated": encoded(RGB, "WEBP", lossless=True, save_all=True, append_images=[OTHER]),
    "tiff-pages": encoded(RGB, "TIFF", save_all=True, append_images=[OTHER]),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_keep_every_bit_of_the_first_frame(name: str) -> None:
    assert (one(LOSSLESS[name]) == PIXELS).all()


@pytest.mark.parametrize("name", [*LOSSLESS, "jpeg", "gif"])
def test_every_prefix_of_a_file_is_refused_or_shows_the_whole_image(name: str) -> None:
    data = LOSSLESS.get(name) or encoded(RGB, name)
    shown: list[np.ndarray] = []
    for end in range(len(data)):
        with suppress(BadInputError):
            shown.append(one(data[:end]))
    assert all((pixels == one(data)).all() for pixels in shown)
    assert len(shown) < len(data) - 20


def test_a_palette_and_an_animated_gif_give_the_first_frame_in_rgb() -> None:
    red, blue = (Image.new("P", (3, 2), 1) for _ in range(2))
    red.putpalette([0, 0, 0, 255, 0, 0])
    blue.putpalette([0, 0, 0, 0, 0, 255])
    got = one(encoded(red, "GIF", save_all=True, append_images=[blue]))
    assert (got == [255, 0, 0]).all()
    assert got.shape == (2, 3, 3)


RULES: dict[str, tuple[Image.Image, str, list[int]]] = {
    "grey": (Image.new("L", (2, 2), 77), "PNG", [77, 77, 77]),
    "one bit": (Image.new("1", (2, 2), 1), "PNG", [255, 255, 255]),
    "16-bit grey PNG": (Image.fromarray(np.full((2, 2), 0x1234, np.uint16)), "PNG", [0x12] * 3),
    "16-bit grey TIFF": (Image.fromarray(np.full((2, 2), 0x1234, np.uint16)), "TIFF", [0x12] * 3),
    "16-bit grey PGM": (Image.fromarray(np.full((2, 2), 0x1234, np.uint16)), "PPM", [0x12] * 3),
    "alpha": (Image.new("RGBA", (2, 2), (200, 100, 50, 51)), "PNG", [40, 20, 10]),
    "grey and alpha": (Image.new("LA", (2, 2), (200, 0)), "PNG", [0, 0, 0]),
    "CMYK": (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "TIFF", [0, 255, 255]),
}


@pytest.mark.parametrize("name", RULES)
def test_pixel_layouts_follow_the_rules(name: str) -> None:
    image, kind, expected = RULES[name]
    assert (one(encoded(image, kind)) == expected).all()


def test_a_transparent_palette_entry_becomes_black() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert (one(encoded(image, "PNG", transparency=1)) == 0).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_the_exif_orientation_is_applied_once(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated 90 degrees clockwise
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (one(encoded(RGB, kind, exif=exif, **options)) == np.rot90(PIXELS, -1)).all()


def test_resizing_ignores_the_aspect_ratio_and_takes_height_first() -> None:
    got = one(encoded(Image.new("RGB", (50, 1), (9, 8, 7)), "PNG"), size=(4, 3))
    assert got.shape == (4, 3, 3)
    assert (got == [9, 8, 7]).all()


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "web page": (b"<!doctype html>", "not PNG, JPEG"),
    "text PPM": (b"P3 1 1 255 1 2 3", "not PNG, JPEG"),
    "bomb": (png(100_000, 100_000, 1), "over the cap of 50 million"),
    "just over the cap": (png(5001, 10_000, 1), "over the cap of 50 million"),
    "rows missing": (png(8, 8, 5), "rows are missing"),
    "rows missing, interlaced": (png(8, 8, 5, interlaced=True), "rows are missing"),
    "checksum": (LOSSLESS["png"].replace(b"IDAT\x78", b"IDAT\x79"), "checksum"),
    "no end": (LOSSLESS["png"][:-12], "truncated"),
    "float": (encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "no agreed range"),
    "no width": (png(0, 3, 0), "not identified"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_in_one_line(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadInputError, match=reason) as caught:
        one(data)
    assert str(caught.value).startswith("a.img: ")
    assert "\n" not in str(caught.value)


def test_an_interlaced_png_with_all_its_rows_is_read() -> None:
    """8x8 in Adam7: seven passes, each a grid of pixels from a first row and column on."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grids = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [row for top, left, down, right in grids for row in pixels[top::down, left::right]]
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    body = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")
    assert np.array_equal(one(data), pixels)


def test_many_images_keep_their_order_with_and_without_threads(tmp_path: Path) -> None:
    colours = [(i, 255 - i, 2 * i % 256) for i in range(256)] + [(7, 7, 7)] * 10
    data = [encoded(Image.new("RGB", (2, 2), colour), "PNG") for colour in colours]
    (tmp_path / "0.png").write_bytes(data[0])
    items = [(item, "x") for item in data]
    got, *_ = decode_all(items, len(data), size=None, source="s")
    assert got.shape == (266, 3, 2, 2)
    assert torch.equal(got[:, :, 0, 0], torch.tensor(colours, dtype=torch.uint8))
    threaded, *_ = decode_all([(tmp_path / "0.png", "x"), *items[1:]], len(data), size=None, source="s")
    assert torch.equal(threaded, got)


def test_different_sizes_need_a_size() -> None:
    items = [(encoded(Image.new("RGB", (w, 4)), "PNG"), f"image {w}") for w in (3, 5)]
    with pytest.raises(BadInputError, match=r"4x3 \(image 3\), 4x5 \(image 5\); pass a size"):
        decode_all(items, 2, size=None, source="s")
    assert decode_all(items, 2, size=(6, 6), source="s")[0].shape == (2, 3, 6, 6)


def test_a_source_that_ends_early_is_an_error() -> None:
    with pytest.raises(BadInputError, match="expected 2 images, found 1"):
        decode_all([(LOSSLESS["png"], "x")], 2, size=None, source="s")


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="gone: cannot be read"):
        decode_all([(tmp_path / "gone.png", "gone")], 1, size=None, source="s")


def test_a_jpeg_of_endless_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(RGB, "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    many = data[:end] + data[start:end] * 50 + data[end:]
    monkeypatch.setattr(decode_module, "MAX_PIXELS", RGB.width * RGB.height)
    monkeypatch.setattr(decode_module, "MAX_SCANS", 20)
    assert one(data).shape == PIXELS.shape
    with pytest.raises(BadInputError, match="the JPEG has too many scans"):
        one(many)


class Counted(np.ndarray):
    """An array whose life can be watched."""


def test_images_of_one_other_size_are_told_to_be_resized(tmp_path: Path) -> None:
    for number, side in enumerate((6, 6)):
        folder = tmp_path / "a"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (side, 5)).save(folder / f"{number}.png")
    (said,) = read_images(str(tmp_path), size=4).notes
    assert said == f"{tmp_path}: all images have 5x6 pixels and were resized to 4x4, which can blur a small trigger"
    assert read_images(str(tmp_path), size=(5, 6)).notes == read_images(str(tmp_path)).notes == ()
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "2.png")  # photographs
    assert read_images(str(tmp_path), size=4).notes == ()


def test_decoded_images_are_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Counted]] = []
    most = []

    def load(item: object, *, size: object, where: str) -> Pixels:
        image = np.zeros((2, 2 + int(where), 3), np.uint8).view(Counted)
        made.append(weakref.ref(image))
        most.append(sum(each() is not None for each in made))
        return Pixels(image, False, (2, 2 + int(where)))

    monkeypatch.setattr(decode_module, "decoded", load)
    items = [(bytes(THREADS_PAY_FROM), str(number)) for number in range(200)]
    with pytest.raises(BadInputError, match="the images differ in size"):
        decode_all(items, 200, size=None, source="s")
    assert len(most) == 200
    assert max(most) <= 1 + 2 * 8


def hidden(mode: str) -> Image.Image:
    """A red picture of which a quarter is transparent, in a mode that can say so."""
    picture = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    picture.paste((200, 0, 0, 0), (0, 0, 2, 2))
    if mode == "LA":
        return picture.convert("LA")
    if mode == "P":
        palette = Image.new("P", (4, 4), 1)
        palette.putpalette([0, 0, 0, 200, 0, 0])
        palette.paste(0, (0, 0, 2, 2))
        palette.info["transparency"] = 0
        return palette
    return picture


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_images_with_transparent_pixels_are_told_once_with_what_was_done(mode: str, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        hidden(mode).save(tmp_path / label / "hidden.png")
        Image.new("RGBA", (4, 4), (0, 200, 0, 255)).save(tmp_path / label / "opaque.png")
        Image.new("RGB", (4, 4), (0, 0, 200)).save(tmp_path / label / "plain.png")
    images = read_images(str(tmp_path))
    told = [note for note in images.notes if "transparent" in note]
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path}: 2 of 6 images have transparent pixels, which were put on black")
    assert (images.images[0, :, :2, :2] == 0).all()
    assert (images.images[0, :, 2:, 2:] > 0).any()
    pictures = [(hidden(mode), 0), (Image.new("RGBA", (4, 4)), 1), (Image.new("RGB", (4, 4)), 0)]
    batches = [([picture for picture, _ in pictures], torch.tensor([0, 1, 0]))]
    rows = [({"bytes": encoded(hidden(mode), "PNG"), "path": None}, 0)]
    for data, count in ((pictures, "2 of 3"), (batches, "2 of 3"), (rows, "1 of 1"), (pictures[2:], None)):
        notes = as_image_set(data).notes
        assert notes == () if count is None else notes[0].startswith(f"list: {count} images have transparent pixels")
        assert len(notes) <= 1


def test_images_that_could_be_transparent_but_are_not_are_not_told_of(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGBA", (4, 4), (0, 200, 0, 255)).save(tmp_path / "a" / "0.png")
    assert read_images(str(tmp_path)).notes == ()


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    """A device has no end, and a pipe makes us wait."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(BadInputError, match="not a regular file"):
            decode_all([(path, "here")], 1, size=None, source="s")
