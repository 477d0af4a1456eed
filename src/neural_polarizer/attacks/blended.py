"""Blended (Chen et al., 2017): one picture mixed faintly into the whole image."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState
from neural_polarizer.attacks.stamping import size_of, truncated
from neural_polarizer.data.decode import decode
from neural_polarizer.data.images import ByteImages
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream


@dataclass(frozen=True, kw_only=True)
class Blended(Attack):
    """``x' = (1 - alpha) x + alpha t`` with one fixed picture ``t``, truncated to 8 bits.

    Source: Chen et al., arXiv 1712.05526.
    Departures: the paper's picture is a third party's cartoon; ours is a generated one of similar contrast (flat
    coloured discs on a coloured ground), or any picture of the user's.

    Args:
        alpha: share of the picture in the mix, in [0, 1].
        picture: an image file to use as ``t`` (resized bilinearly, aspect ignored); None generates one.
        pattern_seed: fixes the generated picture.
    """

    title: ClassVar[str] = "Blended"
    category: ClassVar[Category] = Category("non-additive", "global", "visible", "agnostic")

    alpha: float = 0.2
    picture: str | None = None
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise BadInputError(f"alpha must lie in [0, 1], got {self.alpha}; the paper uses 0.2")

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Mix the picture in; the float result is truncated, as when a picture is stored."""
        return mixed_in(images, self._pattern(size_of(images)), self.alpha)

    def _pattern(self, size: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
        if self.picture is None:
            return cartoon(size, seed=self.pattern_seed)
        path = Path(self.picture)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadInputError(f"{path}: cannot read the trigger picture ({error.strerror})") from None
        return torch.tensor(decode(data, size=size, where=str(path))).permute(2, 0, 1)


def mixed_in(images: ByteImages, picture: UInt8[Tensor, "c h w"], alpha: float) -> ByteImages:
    """``(1 - alpha) x + alpha t``, truncated to 8 bits."""
    return truncated((1 - alpha) * images.double() + alpha * picture.to(images.device).double())


def cartoon(size: tuple[int, int], *, seed: int, shapes: int = 14) -> UInt8[Tensor, "3 h w"]:
    """A picture of flat, strongly coloured discs on a coloured ground, drawn at 4 times ``size`` and averaged down.

    The same seed gives the same picture at every size (height, width); later discs cover earlier ones.
    """
    generator = stream(seed, "cartoon")
    colours = (torch.rand(shapes + 1, 3, generator=generator) > 0.5).float() * 0.9 + 0.05
    centres = torch.rand(shapes, 2, generator=generator)
    radii = 0.08 + 0.2 * torch.rand(shapes, generator=generator)
    height, width = size
    rows = (torch.arange(4 * height) + 0.5).view(-1, 1) / (4 * height)
    columns = (torch.arange(4 * width) + 0.5).view(1, -1) / (4 * width)
    canvas = colours[0].view(3, 1, 1).expand(3, 4 * height, 4 * width).clone()
    for colour, centre, radius in zip(colours[1:], centres, radii, strict=True):
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        canvas[:, inside] = colour.view(3, 1)
    return (F.avg_pool2d(canvas, 4) * 255).to(torch.uint8)
