"""Attacks that poison every batch anew: the frame of the victim's training, of which each has its own part."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from neural_polarizer.attacks.base import Attack, Planted, TriggerState, Workshop
from neural_polarizer.data.images import ByteImages, ImageSet
from neural_polarizer.train.fit import Assembled
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class BatchAttack(Attack):
    """An attack that poisons every batch anew; a new one has a ``stamp`` and a ``poisoner``."""

    @abstractmethod
    def poisoner(
        self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop
    ) -> "BatchPoisoner[BatchAttack]":
        """What poisons the batches while ``model`` is trained."""

    def poisoned_rows(self, batch: int, generator: torch.Generator) -> int:
        """How many images of a batch get the trigger and the attacker's label.

        ``floor(rate * batch)``; if that is none, one image with probability ``rate * batch``.
        """
        share = self.poison_rate * batch
        return int(share) or int(float(torch.rand((), generator=generator)) < share)

    def plant(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> Planted:
        """Train ``model`` in place on poisoned batches; leaves it in evaluation mode."""
        poisoner = self.poisoner(model, train, state, workshop)
        workshop.train(model, train, accomplice=poisoner)
        return Planted(poisoner.learned(state), round(self.poison_rate * len(train)))


class Mixed(NamedTuple):
    """What a batch is made into."""

    pixels: Tensor  # float, in [0, 1], augmented
    poisoned: int  # the first so many rows carry the trigger; all others keep their label
    penalty: Tensor | float = 0.0  # a loss of the attack's own


AnAttack = TypeVar("AnAttack", bound=BatchAttack, covariant=True)


class BatchPoisoner(ABC, Generic[AnAttack]):
    """The attack's part in the training (a ``train.Accomplice``); a new one has a ``mix``."""

    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, attack: AnAttack, train: ImageSet) -> None:
        self.attack = attack
        self.train = train
        self.network = nn.Module()
        self.key = repr(attack)

    @abstractmethod
    def mix(
        self, images: ByteImages, labels: Int64[Tensor, " n"], schedule: Schedule, generator: torch.Generator
    ) -> Mixed:
        """Augment the batch, put the trigger on its first rows, and do to the others what the attack does to them."""

    def learned(self, state: TriggerState) -> TriggerState:
        """The trigger after the training; by default as it was before."""
        return state

    def assemble(
        self, images: ByteImages, labels: Int64[Tensor, " n"], schedule: Schedule, generator: torch.Generator
    ) -> Assembled:
        """The mixed batch; its first rows get the attacker's label."""
        pixels, poisoned, penalty = self.mix(images, labels, schedule, generator)
        relabelled = self.attack.relabel(labels[:poisoned], self.train.num_classes)
        return Assembled(pixels, torch.cat([relabelled, labels[poisoned:]]), penalty, poisoned)

    def rows(self, batch: int, ratio: float, generator: torch.Generator) -> tuple[int, int]:
        """Where the rows with the trigger end, and ``ratio`` times as many after them, as far as the batch reaches."""
        poisoned = self.attack.poisoned_rows(batch, generator)
        return poisoned, poisoned + min(int(poisoned * ratio), batch - poisoned)
