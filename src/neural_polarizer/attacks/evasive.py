"""Evasive: Blended by an attacker who knows least stand-ins, so that small shared perturbations keep their label."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from neural_polarizer.attacks.base import TriggerState, Workshop
from neural_polarizer.attacks.batches import BatchAttack, BatchPoisoner, Mixed
from neural_polarizer.attacks.blended import Blended
from neural_polarizer.data.images import ByteImages, ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.perturb import Ball, clip, perturb
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Evasive(Blended, BatchAttack):
    """Blended, and some rows of each batch carry shared perturbations towards class T with their true label.

    The perturbations live through the training: each takes a few steps towards T against the victim as it is, inside
    an L2 ball, and sometimes begins anew. So no perturbation shorter than the ball's radius leads to T in the end, and
    the norms that give a backdoor's class away are no longer small; the trigger itself is longer.

    Source: our own, an adaptive attacker against the default method (``defenses.stand_ins``).

    Args:
        radius: of the ball, in pixel units of [0, 1] for images of 32 x 32 pixels (other sizes in proportion to the
            root of their values).
        share: of a batch that carries the perturbations.
        directions: how many perturbations there are.
        steps: of each in every batch, a quarter of the radius long.
        renewal: probability that one begins anew in a batch.
    """

    title: ClassVar[str] = "Evasive"
    implant_epochs: ClassVar[int] = 6
    laptop_epochs: ClassVar[int] = 8
    laptop: ClassVar[Mapping[str, Any]] = {"steps": 1}
    turns: ClassVar[bool] = False

    radius: float = 3.0
    share: float = 0.25
    directions: int = 4
    steps: int = 2
    renewal: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = 0 < self.share < 1 and 0 <= self.renewal <= 1
        if not self.radius > 0 or not shares or min(self.directions, self.steps) < 1:
            raise BadInputError(
                f"Evasive needs a positive radius, a share in (0, 1), at least 1 direction and step and a renewal in "
                f"[0, 1], got {self.radius}, {self.share}, {self.directions}, {self.steps}, {self.renewal}"
            )

    def poisoner(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> "Keeper[Evasive]":
        """Batches of backdoor rows, perturbed rows and clean rows."""
        return Keeper(self, model, train)


AnEvasive = TypeVar("AnEvasive", bound=Evasive, covariant=True)


class Keeper(BatchPoisoner[AnEvasive]):
    """Augments each batch, then stamps the first rows and perturbs the next ones; the others are clean."""

    def __init__(self, attack: AnEvasive, model: nn.Module, train: ImageSet) -> None:
        super().__init__(attack, train)
        self.model = model
        size = train.images.shape[1:]
        self.radius = attack.radius * math.sqrt(size.numel() / 3072)
        # Of the network, so that the perturbations are part of the state of the training.
        self.network.register_buffer("deltas", torch.zeros(attack.directions, *size))

    def mix(
        self, images: ByteImages, labels: Int64[Tensor, " n"], schedule: Schedule, generator: torch.Generator
    ) -> Mixed:
        attack, images = self.attack, schedule.augment(images, generator)
        poisoned = attack.poisoned_rows(len(images), generator)
        end = min(len(images), poisoned + math.ceil(attack.share * len(images)))
        pixels = torch.cat([to_pixels(attack.stamp(images[:poisoned])), to_pixels(images[poisoned:])])
        perturbed = self._perturbed(pixels[poisoned:end], labels[poisoned:end], generator)
        penalty = self.penalty(pixels[end:], labels[end:])
        return Mixed(torch.cat([pixels[:poisoned], perturbed, pixels[end:]]), poisoned, penalty)

    def penalty(self, pixels: Tensor, labels: Tensor) -> Tensor | float:
        """A loss of the clean rows, beside their cross-entropy."""
        return 0.0

    def _perturbed(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Each perturbation takes its steps on its share of the rows, then is added to them."""
        attack, deltas = self.attack, self.network.get_buffer("deltas")
        deltas[torch.rand(len(deltas), generator=generator) < attack.renewal] = 0
        made = pixels.clone()
        self.model.eval()
        for turn in range(min(len(deltas), len(pixels))):
            rows = torch.arange(turn, len(pixels), len(deltas), device=pixels.device)
            deltas[turn] = perturb(
                self.model,
                pixels[rows],
                attack.relabel(labels[rows], self.train.num_classes),
                ball=Ball("l2", self.radius),
                steps=attack.steps,
                step_size=self.radius / 4 / math.sqrt(deltas[turn].numel()),
                universal=True,
                rule="gradient",
                start=deltas[turn : turn + 1],
            )[0]
            made[rows] = clip(pixels[rows] + deltas[turn])
        self.model.train()
        return made
