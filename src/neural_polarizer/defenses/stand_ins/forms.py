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
    unit: float  # of its radii

    def free(self, count: int, bank: Bank, device: torch.device) -> Forms:
        """``count`` of them anywhere."""
        ones = torch.ones(count, *[1] * len(self.shape), device=device)
        return Forms(ones, torch.full((count,), self.smooth), bank.cells)


def pixel_forms(shape: tuple[int, ...], bank: Bank) -> Mapping[str, PixelForm]:
    """The forms for images of ``shape`` (c, h, w), by name."""
    size = math.sqrt(math.prod(shape) / 3072)  # of 32 x 32 pixels with 3 channels
    return {
        "dense": PixelForm("dense", shape, smooth=False, unit=bank.dense_unit * size),
        "smooth": PixelForm("smooth", shape, smooth=True, unit=bank.smooth_unit * size),
    }
