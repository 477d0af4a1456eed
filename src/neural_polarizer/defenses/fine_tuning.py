"""FT: all weights trained on the clean images, the control of every table; other defenses end with it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import Schedule

RECIPE = Schedule(epochs=100, batch_size=256, lr=0.01)
"""Paper, appendix B: lr 0.01 and batches of 256 for all methods that fine-tune; 100 epochs (GTSRB: 50)."""

LAPTOP: Mapping[str, Any] = {"schedule.epochs": 20, "schedule.batch_size": 32, "schedule.lr": 0.03}
"""Fewer passes, but larger steps on smaller batches: the laptop's victims were trained at ten times the paper's rate,
and 0.01 leaves their backdoors in place (docs/research/defenses.md)."""


@dataclass(frozen=True, kw_only=True)
class FineTuning(Defense):
    """Train the whole network on the clean images.

    Source: the control of the paper's comparison.  Departures: none.

    Args:
        schedule: how to train; batches are never larger than the clean set.
    """

    title: ClassVar[str] = "FT"
    story: ClassVar[tuple[str, ...]] = (
        "A copy of the model was trained further on clean images, all its weights: plain fine-tuning (FT).",
    )
    laptop: ClassVar[Mapping[str, Any]] = LAPTOP
    smoke: ClassVar[Mapping[str, Any]] = {"schedule.epochs": 1}
    every_class: ClassVar[bool] = True

    schedule: Schedule = field(default=RECIPE)

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("fine_tune"):
            return Outcome(fine_tuned(model, clean, self.schedule, run))


def fine_tuned(model: nn.Module, clean: ImageSet, schedule: Schedule, run: Run) -> nn.Module:
    """A copy of ``model``, all weights trained on ``clean``; in evaluation mode on the run's device."""
    tuned = copy.deepcopy(model).requires_grad_(True)
    batch = min(schedule.batch_size, len(clean))
    fit(tuned, clean, replace(schedule, batch_size=batch), seed=run.seed, device=run.device, progress=run.progress)
    return tuned.eval()
