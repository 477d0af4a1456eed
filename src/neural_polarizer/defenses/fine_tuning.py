"""FT: all weights trained on the clean images, the control of every table; other defenses end with it."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Purified, check_images, repaired
from neural_polarizer.train import Progress, Schedule, fit, silent

RECIPE = Schedule(epochs=100, batch_size=256, lr=0.01)
"""Paper, appendix B: lr 0.01 and batches of 256 for all methods that fine-tune; 100 epochs (GTSRB: 50)."""

LAPTOP: Mapping[str, Any] = MappingProxyType({"schedule.epochs": 20, "schedule.batch_size": 32, "schedule.lr": 0.03})
"""Fewer passes, but larger steps on smaller batches: the laptop's victims were trained at ten times the paper's rate,
and 0.01 leaves their backdoors in place (docs/defenses.md)."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Train the whole network on the clean images.

    Source: the control of the paper's comparison.  Departures: none.

    Args:
        schedule: how to train; batches are never larger than the clean set.
    """

    revision: ClassVar[int] = 1
    laptop: ClassVar[Mapping[str, Any]] = LAPTOP

    schedule: Schedule = field(default=RECIPE)

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified:
        """A fine-tuned copy of ``model``.

        Raises:
            BadInputError: fewer than two images, or a class without any.
        """
        started = time.perf_counter()
        check_images("FT", model, clean, every_class=True)
        tuned = fine_tuned(model, clean, self.schedule, seed=seed, device=device, progress=progress)
        return repaired(tuned, {"fine_tune": time.perf_counter() - started})


def fine_tuned(
    model: nn.Module,
    clean: ImageSet,
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> nn.Module:
    """A copy of ``model``, all weights trained on ``clean``; in evaluation mode on ``device``."""
    tuned = copy.deepcopy(model).requires_grad_(True)
    batch = min(schedule.batch_size, len(clean))
    fit(tuned, clean, replace(schedule, batch_size=batch), seed=seed, device=device, progress=progress)
    return tuned.eval()
