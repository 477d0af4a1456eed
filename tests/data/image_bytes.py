"""Images as the bytes of a file."""

import io
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(colour: tuple[int, int, int] = (1, 2, 3), size: tuple[int, int] = (4, 5)) -> bytes:
    return encoded(Image.new("RGB", size, colour), "PNG")
