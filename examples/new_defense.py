"""A new defense in one class: batch norms get the statistics of clean images. Its module name makes it available:

cd examples
polarizer purify MODEL --clean IMAGES --method new_defense:CleanStatistics --out purified/
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import neural_polarizer as npz
from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses import Run
from neural_polarizer.defenses.result import Outcome


@dataclass(frozen=True, kw_only=True)
class CleanStatistics(npz.Defense):
    """Estimate the running statistics of all batch norms anew; weights stay as they are.

    Args:
        passes: over the clean images.
    """

    title: ClassVar[str] = "Clean statistics"
    story: ClassVar[tuple[str, ...]] = (
        "All batch norms got the statistics of the clean images. No weight was changed.",
    )

    passes: int = 2

    def _run(self, model: nn.Module, clean: npz.ImageSet, run: Run) -> Outcome:
        """The algorithm; ``model`` is a copy of its own, to be changed at will."""
        model.train()
        with torch.no_grad():
            for done in range(self.passes):
                for pixels in to_pixels(clean.images).split(64):
                    model(pixels.to(run.device))
                run.progress("statistics", done + 1, self.passes)
        return Outcome(model.eval())
