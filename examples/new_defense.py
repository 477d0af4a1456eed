"""A new defense in one class: batch norms get the statistics of clean images. Its module name makes it available:

    cd examples
    polarizer purify MODEL --clean IMAGES --method new_defense:CleanStatistics --out purified/
"""

import copy
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import neural_polarizer as npz
from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.base import repaired
from neural_polarizer.train import Progress, silent


@dataclass(frozen=True, kw_only=True)
class CleanStatistics:
    """Estimate the running statistics of all batch norms anew; weights stay as they are.

    Args:
        passes: over the clean images.
    """

    revision: ClassVar[int] = 1

    passes: int = 2

    def repair(
        self,
        model: nn.Module,
        clean: npz.ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> npz.Purified:
        """A copy of ``model``; the model that comes in stays as it is."""
        started = time.perf_counter()
        mended = copy.deepcopy(model).to(device).train()
        with torch.no_grad():
            for done in range(self.passes):
                for pixels in to_pixels(clean.images).split(64):
                    mended(pixels.to(device))
                progress("statistics", done + 1, self.passes)
        return repaired(mended, {"statistics": time.perf_counter() - started})
