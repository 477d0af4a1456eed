"""What a stand-in in pixels may be: anything, or something smooth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from neural_polarizer.defenses.stand_ins.least import Forms
from neural_polarizer.defenses.stand_ins.settings import Bank


@dataclass(frozen=True)
class PixelForm:
    """One form of stand-ins in pixels."""

    name: str  # "dense" or "smooth"
    shape: tuple[int, ...]  # of one stand-in, (c, h, w)
    smooth: bool  # whether each step is one that a coarse grid could take

    @property
    def unit(self) -> float:
        """Of its radii: 2, for smooth ones 4, for 32 x 32 pixels with 3 channels; it grows with the root of the size.

        In clean networks smooth ones are several times as long as dense ones, and a cap that most of them reach would
        make the others outliers.
        """
        return (4.0 if self.smooth else 2.0) * math.sqrt(math.prod(self.shape) / 3072)

    def free(self, count: int, bank: Bank, device: torch.device) -> Forms:
        """``count`` of them anywhere."""
        ones = torch.ones(count, *[1] * len(self.shape), device=device)
        return Forms(ones, torch.full((count,), self.smooth), bank.cells)


def pixel_forms(shape: tuple[int, ...]) -> Mapping[str, PixelForm]:
    """The forms for images of ``shape`` (c, h, w), by name."""
    return {"dense": PixelForm("dense", shape, smooth=False), "smooth": PixelForm("smooth", shape, smooth=True)}
