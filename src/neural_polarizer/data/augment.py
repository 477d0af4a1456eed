"""Random crops and flips of whole batches, still as bytes, on the device where the images are."""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional


def random_crop(images: UInt8[Tensor, "n c h w"], padding: int, generator: torch.Generator) -> UInt8[Tensor, "n c h w"]:
    """Shift every image by its own -padding..padding pixels each way; what moves in is black.

    Shape: uint8 ``(n, c, h, w)`` in 0..255 to the same shape and device.

    Args:
        images: the batch; it is not changed.
        padding: the largest shift in pixels, 0 or more.
        generator: draws the shifts, on its own device, so that a CPU one gives the same shifts everywhere.

    Raises:
        ValueError: ``padding`` is negative.
    """
    if padding < 0:
        raise ValueError(f"padding must be 0 or more pixels, got {padding}")
    n, channels, height, width = images.shape
    shifts = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=generator.device)
    top, left = shifts.to(images.device)
    rows = (top + torch.arange(height, device=images.device)).view(n, 1, height, 1)
    columns = (left + torch.arange(width, device=images.device)).view(n, 1, 1, width)
    image = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    return functional.pad(images, [padding] * 4)[image, channel, rows, columns]


def random_flip(images: UInt8[Tensor, "n c h w"], generator: torch.Generator) -> UInt8[Tensor, "n c h w"]:
    """Mirror every image left to right with probability one half.

    Shape: uint8 ``(n, c, h, w)`` in 0..255 to the same shape and device; ``images`` is not changed.
    """
    coins = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where(coins.bool().to(images.device), images.flip(3), images)
