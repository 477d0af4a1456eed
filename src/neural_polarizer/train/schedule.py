"""How to train a classifier: epochs, rates, augmentation, precision, adversarial examples."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from neural_polarizer.data.augment import random_crop, random_flip, random_rotation, where
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import check_literals


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """Untargeted L_inf attacks on every batch, to train on instead of it (the adaptive attacker).

    Args:
        eps: radius in pixel units of [0, 1].
        steps: sign steps from a random start, of eps / 4; longer ones if so few could not cross the ball.
        clean_weight: share of the loss that stays on the batch as it is.
        spare_triggered: leave triggered images as they are. Perturbing them hides a faint trigger from the victim.
    """

    eps: float = 8 / 255
    steps: int = 7
    clean_weight: float = 0.0
    spare_triggered: bool = False

    @property
    def step_size(self) -> float:
        """Of one step, in pixel units."""
        return self.eps * max(0.25, 1.25 / self.steps)

    def __post_init__(self) -> None:
        if self.eps <= 0 or self.steps < 1 or not 0 <= self.clean_weight <= 1:
            raise BadInputError(
                f"adversarial training needs a positive eps, at least 1 step and a clean weight in [0, 1], "
                f"got {self.eps}, {self.steps}, {self.clean_weight}"
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to train a classifier; the defaults are the reference's for CIFAR-10.

    Args:
        epochs: passes over the data.
        batch_size: images a step; the last, smaller batch of an epoch is dropped.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: of the optimizer.
        policy: "cosine" to zero over all epochs, stepped per epoch; "one-cycle" warms up linearly for the first
            quarter and falls linearly to zero, stepped per batch (better when epochs are few); "constant".
        crop_padding: pixels of zero padding for random crops; 0 switches them off.
        crop_share: share of the images that are cropped.
        rotation: turn by up to this many degrees either way; 0 switches it off.
        rotation_share: share of the images that are turned.
        flip: mirror half of the images.
        adversarial: train on adversarial examples of the batches; None does not.
        precision: "bf16" autocast or "fp32".
        optimizer: "sgd", or "adamw" for networks that SGD hardly trains, such as vision transformers.
    """

    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    policy: Literal["cosine", "one-cycle", "constant"] = "cosine"
    crop_padding: int = 4
    crop_share: float = 1.0
    rotation: float = 0.0
    rotation_share: float = 0.5
    flip: bool = True
    adversarial: AdversarialTraining | None = None
    precision: Precision = "fp32"
    optimizer: Literal["sgd", "adamw"] = field(default="sgd", metadata={"later": True})

    def __post_init__(self) -> None:
        check_literals(self)
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.lr <= torch.finfo(torch.float32).max:
            raise BadInputError(
                f"epochs and batch size must be at least 1 and lr positive and a number that float32 has, "
                f"got {self.epochs}, {self.batch_size}, {self.lr}"
            )
        if not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise BadInputError(
                f"momentum must lie in [0, 1) and weight decay must not be negative, got {self.momentum}, "
                f"{self.weight_decay}"
            )

    def optimize(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """A new optimizer of these ``parameters``."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crops, turns and flips, drawn anew for every image; uint8 or float ``(n, c, h, w)`` to the same."""
        if self.crop_padding:
            cropped = random_crop(images, self.crop_padding, generator)
            images = cropped if self.crop_share == 1 else where(self.crop_share, cropped, images, generator)
        if self.rotation:
            turned = random_rotation(images, self.rotation, generator)
            images = where(self.rotation_share, turned, images, generator)
        return random_flip(images, generator) if self.flip else images

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of forward passes in this precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of optimiser step ``step`` (from 0)."""
        return self.lr * self.share_at(step, steps_per_epoch)

    def share_at(self, step: int, steps_per_epoch: int) -> float:
        """The same as a share of the peak learning rate, in [0, 1]."""
        if self.policy == "cosine":
            epoch = step // steps_per_epoch
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        if self.policy == "one-cycle":
            total = self.epochs * steps_per_epoch
            peak = max(1, total // 4)
            return min((step + 1) / peak, (total - step) / max(1, total - peak))
        return 1.0
