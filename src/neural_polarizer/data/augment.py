"""Random crops, turns and flips of whole batches, as bytes or floats, on the device where the images are."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift every image by its own -padding..padding pixels each way; what moves in is black.

    Shape: uint8 in 0..255 or float ``(n, c, h, w)`` to the same, on the same device.

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


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image left to right with probability one half.

    Shape: uint8 in 0..255 or float ``(n, c, h, w)`` to the same; ``images`` is not changed.
    """
    coins = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where(coins.bool().to(images.device), images.flip(3), images)


def random_rotation(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turn every image about its centre by its own angle, up to ``degrees`` either way; black moves in.

    Shape: uint8 in 0..255 or float ``(n, c, h, w)``, to the same; bilinear, ``images`` is not changed.
    """
    n, _, height, width = images.shape
    angles = torch.rand(n, generator=generator, device=generator.device) * 2 - 1
    angles = (angles * math.radians(degrees)).to(images.device)
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # Rows of the matrix in normalised coordinates, in which a pixel is not square unless the image is.
    turn = torch.stack(
        [cosine, -sine * height / width, zero, sine * width / height, cosine, zero],
        dim=1,
    ).view(n, 2, 3)
    grid = functional.affine_grid(turn, [n, 1, height, width], align_corners=False)
    turned = functional.grid_sample(images.float(), grid, align_corners=False)
    return turned.round().to(images.dtype) if images.dtype == torch.uint8 else turned


def where(share: float, changed: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
    """``changed`` for a random ``share`` of the batch, ``images`` for the rest."""
    coins = torch.rand((len(images), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where((coins < share).to(images.device), changed, images)
