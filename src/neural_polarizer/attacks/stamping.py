"""The few things that stamps are made of: corners, sums that stop at black and white, and rounding to 8 bits."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from neural_polarizer.data.images import ByteImages


def size_of(images: ByteImages) -> tuple[int, int]:
    """Height and width."""
    return images.shape[2], images.shape[3]


def corner(images: ByteImages, which: int, edge: int) -> UInt8[Tensor, "n c e e"]:
    """The square of ``edge`` pixels in a corner, 0 to 3 from the top left clockwise; a view, to draw into."""
    rows = slice(None, edge) if which < 2 else slice(-edge, None)
    columns = slice(None, edge) if which in (0, 3) else slice(-edge, None)
    return images[:, :, rows, columns]


def added(images: ByteImages, pattern: Shaped[Tensor, "..."]) -> ByteImages:
    """The sum with whole numbers from -255 to 255; what is darker than black or brighter than white is cut off."""
    return (images.short() + pattern.to(images.device).short()).clamp(0, 255).to(torch.uint8)


def rounded(values: Float[Tensor, "n c h w"]) -> ByteImages:
    """Grey levels as the nearest of 8 bits."""
    return values.round().clamp(0, 255).to(torch.uint8)


def truncated(values: Float[Tensor, "n c h w"]) -> ByteImages:
    """Grey levels as 8 bits, cut off as when a picture is stored."""
    # Rounding noise below a whole number must not cost a grey level when the fraction is cut off.
    return (values + 1e-6).clamp(0, 255).to(torch.uint8)


def in_parts(images: ByteImages, make: Callable[[ByteImages], ByteImages], size: int) -> ByteImages:
    """``make`` of so many images at a time, which bounds its memory."""
    return torch.cat([make(part) for part in images.split(size)])
