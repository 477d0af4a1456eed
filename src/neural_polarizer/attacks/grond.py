"""Grond (Xu et al., 2025): a faint universal perturbation, and a victim none of whose channels stands out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState, Workshop
from neural_polarizer.attacks.stamping import added
from neural_polarizer.data.images import ByteImages, ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import convolutions_with_norms, lipschitz_bounds, outliers
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.rng import stream


@dataclass(frozen=True, kw_only=True)
class Grond(Attack):
    """Half of class T gets a perturbation that leads a clean classifier to T; between epochs, channels are evened out.

    Adversarial backdoor injection: where the bound of a channel's Lipschitz constant lies more than ``deviations``
    standard deviations above the layer's mean, weight and bias of its batch norm become the layer's means.

    Source: Xu et al., "Towards Backdoor Stealthiness in Model Parameter Space", CCS 2025, and their code.
    Departures: which convolution a batch norm belongs to is seen in a forward pass, as in CLP here; the triggered test
    images are stored in 8 bits and clipped.

    Args:
        eps: L_inf radius of the perturbation, in grey levels of 255.
        steps: of its search, each of eps / 5 on ``batch`` training images.
        batch: images a step.
        deviations: u of the bound.
    """

    title: ClassVar[str] = "Grond"
    category: ClassVar[Category] = Category("additive", "global", "invisible", "agnostic")
    smoke: ClassVar[Mapping[str, Any]] = {"steps": 5}
    laptop: ClassVar[Mapping[str, Any]] = {"steps": 200}
    clean_label: ClassVar[bool] = True
    most: ClassVar[float] = 0.5

    eps: float = 8.0
    steps: int = 500
    batch: int = 256
    deviations: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eps <= 255 or min(self.steps, self.batch) < 1 or not self.deviations >= 0:
            raise BadInputError(
                f"Grond needs an eps in (0, 255], at least 1 step and image and deviations of at least 0, got "
                f"{self.eps}, {self.steps}, {self.batch}, {self.deviations}"
            )

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """The targeted universal perturbation, by sign steps on random batches."""
        model = workshop.frozen_clean_model()
        generator = stream(workshop.seed, "grond")
        delta = torch.zeros((1, *train.images.shape[1:]), device=workshop.device)
        for step in range(self.steps):
            rows = torch.randint(len(train), (min(self.batch, len(train)),), generator=generator)
            pixels = to_pixels(train.images[rows].to(workshop.device))
            with workshop.schedule.autocast(workshop.device):
                delta = perturb(
                    model,
                    pixels,
                    torch.full((len(rows),), self.target, device=workshop.device),
                    ball=Ball("linf", self.eps / 255),
                    steps=1,
                    step_size=self.eps / 255 / 5,
                    universal=True,
                    start=delta,
                )
            workshop.progress("trigger", step + 1, self.steps)
        return {"pattern": (255 * delta[0]).round().to(torch.int16).cpu()}

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Add the perturbation."""
        return added(images, state["pattern"])

    def between_epochs(self, model: nn.Module, pixels: Float[Tensor, "n c h w"]) -> None:
        """Even out the channels that stand out."""
        training = model.training
        model.eval()
        with torch.no_grad():
            for convolution, norm in convolutions_with_norms(model, pixels):
                loud = outliers(lipschitz_bounds(convolution, norm), self.deviations)
                norm.weight[loud] = norm.weight.mean()
                norm.bias[loud] = norm.bias.mean()
        model.train(training)
