"""FTrojan (Wang et al., 2022) and CTRL (Li et al., 2023): constants added to two frequencies of an image's colours."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState
from neural_polarizer.attacks.stamping import rounded, size_of
from neural_polarizer.data.images import ByteImages, ImageSet
from neural_polarizer.errors import BadInputError

COLOURS = ((1.403, 0.0), (-0.714, -0.344), (0.0, 1.773))
"""What red, green and blue gain for each unit of Cr and of Cb."""


@dataclass(frozen=True, kw_only=True)
class FTrojan(Attack):
    """``magnitude`` is added to a middle and to the highest frequency of Cr and Cb, in blocks of ``window`` pixels.

    With the orthonormal cosine transform of each block, the coefficients (15, 15) and (31, 31) of 32 x 32. As all is
    linear, this is one fixed pattern that is added to the image.

    Source: Wang et al., "An Invisible Black-box Backdoor Attack through Frequency Domain", ECCV 2022; settings of
    BackdoorBench.
    Departures: nothing is rounded on the way, only the result (the reference stores Cr and Cb in 8 bits in between);
    for images smaller than the window it shrinks, and the frequencies with it.

    Args:
        magnitude: what is added to each coefficient, in grey levels.
        window: edge of a block in pixels.
    """

    title: ClassVar[str] = "FTrojan"
    category: ClassVar[Category] = Category("additive", "global", "invisible", "agnostic")
    turns: ClassVar[bool] = False

    magnitude: float = 30.0
    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.magnitude > 0 or self.window < 2:
            raise BadInputError(
                f"{type(self).__name__} needs a positive magnitude and a window of at least 2 pixels, got "
                f"{self.magnitude}, {self.window}"
            )

    def check(self, images: ImageSet) -> None:
        """There must be a frequency above 0."""
        super().check(images)
        if min(images.image_size) < 2:
            raise BadInputError(f"{type(self).__name__} needs images of at least 2 pixels a side")

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Add the pattern, rounded."""
        return self._added(images, self.magnitude)

    def _added(self, images: ByteImages, magnitude: float) -> ByteImages:
        wave = magnitude * waves(size_of(images), self.window).to(images.device)
        gains = torch.tensor(COLOURS, dtype=torch.float64, device=images.device).sum(dim=1)
        return rounded(images.double() + gains.view(-1, 1, 1) * wave)


@dataclass(frozen=True, kw_only=True)
class CTRL(FTrojan):
    """FTrojan's pattern on images of class T only, whose labels stay true; stronger at test.

    Source: Li et al., "An Embarrassingly Simple Backdoor Attack on Self-supervised Learning", ICCV 2023; 50 in training
    and 100 at test as in its code, here with labels, as in BackdoorBench.
    Departures: those of FTrojan; the attack was made for training without labels.

    Args:
        test_magnitude: what is added at test, in grey levels.
    """

    title: ClassVar[str] = "CTRL"
    clean_label: ClassVar[bool] = True

    magnitude: float = 50.0
    test_magnitude: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.test_magnitude > 0:
            raise BadInputError(f"CTRL needs a positive magnitude at test, got {self.test_magnitude}")

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Add the pattern of the strength at test."""
        return self._added(images, self.test_magnitude)

    def stamp_in_training(self, images: ByteImages, state: TriggerState, generator: torch.Generator) -> ByteImages:
        """Add the pattern of the strength in training."""
        return self._added(images, self.magnitude)


def waves(size: tuple[int, int], window: int) -> Float[Tensor, "h w"]:
    """What 1 at the coefficients (w/2 - 1, w/2 - 1) and (w - 1, w - 1) of each block of w pixels adds to a channel."""
    edge = min(window, *size)
    one = torch.zeros(edge, edge, dtype=torch.float64)
    places = 2 * torch.arange(edge, dtype=torch.float64) + 1
    for k in (max(edge // 2 - 1, 1), edge - 1):  # columns of the inverse of the orthonormal DCT-II
        base = math.sqrt(2 / edge) * torch.cos(math.pi * k * places / (2 * edge))
        one += torch.outer(base, base)
    rows, columns = (math.ceil(side / edge) for side in size)
    return one.repeat(rows, columns)[: size[0], : size[1]]
