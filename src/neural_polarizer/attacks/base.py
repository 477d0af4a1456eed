"""What all attacks share: label rule, poisoning, training the victim."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import LabelRule, TriggeredSet, attacked_labels, poison, triggered_test
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import check_literals
from neural_polarizer.train import Progress, Schedule, fit, silent


@dataclass(frozen=True, kw_only=True)
class DataPoisoning(ABC):
    """An attack that plants its backdoor through poisoned training images alone.

    A new attack of this kind is one subclass with a ``stamp``.

    Args:
        target: the attacker's class T, for the label rule "all-to-one".
        label_rule: "all-to-one" relabels to T, "all-to-all" to ``(y + 1) mod K``.
        poison_rate: share of all training images that are poisoned, in [0, 1].

    Raises:
        BadInputError: a setting is out of its range.
    """

    target: int = 0
    label_rule: LabelRule = "all-to-one"
    poison_rate: float = 0.1

    def __post_init__(self) -> None:
        check_literals(self)
        if not 0 <= self.poison_rate <= 1:
            raise BadInputError(f"the poison rate must lie in [0, 1], got {self.poison_rate}; the paper uses 0.1")
        if self.target < 0:
            raise BadInputError(f"the target class must be at least 0, got {self.target}")

    @abstractmethod
    def stamp(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """The triggered form of ``images``; the same images in, the same images out."""

    def relabel(self, labels: Int64[Tensor, " n"], num_classes: int) -> Int64[Tensor, " n"]:
        """The attacker's labels (int64, in 0..K-1).

        Raises:
            BadInputError: the target class does not exist.
        """
        if self.target >= num_classes:
            raise BadInputError(f"the target class must lie in 0..{num_classes - 1}, got {self.target}")
        return attacked_labels(labels, num_classes, self.label_rule, self.target)

    def triggered(self, test: ImageSet) -> TriggeredSet:
        """The frozen triggered test set."""
        return triggered_test(test, self)

    def plant(
        self,
        model: nn.Module,
        train: ImageSet,
        *,
        schedule: Schedule,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
        checkpoint: Path | None = None,
    ) -> Int64[Tensor, " m"]:
        """Train ``model`` in place on the poisoned set; returns the indices of the poisoned images."""
        poisoned, chosen = poison(train, self, rate=self.poison_rate, seed=seed)
        fit(model, poisoned, schedule, seed=seed, device=device, progress=progress, checkpoint=checkpoint)
        return chosen
