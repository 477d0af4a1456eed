"""What a defense receives and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.polarizer import Polarizer
from neural_polarizer.suspects import Suspect
from neural_polarizer.train import Progress, silent


@dataclass(frozen=True, eq=False)
class Purified:
    """A purified classifier.

    Args:
        model: a new module in evaluation mode on the CPU; the defended model's own module is untouched.
        polarizer: the learned layer inside ``model``, or None for defenses that insert nothing.
        site: where it sits, as ``before:NAME`` or ``after:NAME``.
        history: one record an epoch (losses, clean accuracy and surrogate success on the defender's own images).
        seconds: wall-clock by phase.
        notes: what the user should know, in words.
        suspect: the class that the defense took for the attacker's, or "next" for all-to-all; None if it looked
            for none.
    """

    model: nn.Module
    polarizer: Polarizer | None
    site: str | None
    history: Sequence[Mapping[str, float]]
    seconds: Mapping[str, float]
    notes: Sequence[str]
    suspect: Suspect | None = None


@runtime_checkable
class Defense(Protocol):
    """A defense sees a model, a few clean images and a seed; the trigger and the test set do not fit in."""

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified: ...
