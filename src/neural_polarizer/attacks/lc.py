"""LC (Turner et al., 2019): patches in the corners of images of the target class that were made hard to learn."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState, Workshop
from neural_polarizer.attacks.stamping import corner
from neural_polarizer.data.images import ByteImages, ImageSet, to_bytes, to_pixels
from neural_polarizer.data.poison import chosen_rows
from neural_polarizer.errors import BadInputError
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.rng import stream

PATCH = ((255, 0, 255), (0, 255, 0), (255, 0, 0))
"""From the bottom right corner upwards and to the left; mirrored into the other corners."""
CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class LC(Attack):
    """Adversarial images of class T with a patch of 3 x 3 pixels in all corners; at test the patch only.

    A clean classifier no longer recognises the images, so that the victim has to learn the patch instead.

    Source: Turner et al., "Label-Consistent Backdoor Attacks", arXiv 1912.02771; patch of their code at full amplitude.
    Departures: the adversarial images come from one clean classifier of the victim's own architecture, from which an
    implant starts (the authors use adversarially trained ones).

    Args:
        eps: L_inf radius of the adversarial perturbation, in grey levels of 255.
        steps: of PGD from a random start, each of 2.5 eps / steps.
    """

    title: ClassVar[str] = "LC"
    category: ClassVar[Category] = Category("additive", "local", "visible", "agnostic")
    smoke: ClassVar[Mapping[str, Any]] = {"steps": 2}
    laptop: ClassVar[Mapping[str, Any]] = {"steps": 10}
    clean_label: ClassVar[bool] = True

    eps: float = 16.0
    steps: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eps <= 255 or self.steps < 1:
            raise BadInputError(f"LC needs an eps in (0, 255] and at least 1 step, got {self.eps}, {self.steps}")

    def check(self, images: ImageSet) -> None:
        """Two patches must fit beside each other."""
        super().check(images)
        if min(images.image_size) < 6:
            raise BadInputError(f"LC needs images of at least 6 pixels a side, got {images.image_size}")

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """The adversarial forms of the images to poison, and the SHA-256 of each of these images."""
        rows = chosen_rows(train.labels, rate=self.poison_rate, seed=workshop.seed, only=self.poisons_only)
        model = workshop.frozen_clean_model()
        generator = stream(workshop.seed, "lc")
        ball, hard = Ball("linf", self.eps / 255), []
        for done, part in enumerate(rows.split(CHUNK)):
            pixels = to_pixels(train.images[part].to(workshop.device))
            start = ball.radius * (2 * torch.rand(pixels.shape, generator=generator) - 1)
            with workshop.schedule.autocast(workshop.device):
                delta = perturb(
                    model,
                    pixels,
                    train.labels[part].to(workshop.device),
                    ball=ball,
                    steps=self.steps,
                    step_size=2.5 * self.eps / 255 / self.steps,
                    targeted=False,
                    start=start.to(pixels),
                )
            hard.append(to_bytes(pixels + delta).cpu())
            workshop.progress("trigger", min((done + 1) * CHUNK, len(rows)), len(rows))
        known = [list(_digest(image)) for image in train.images[rows]]
        return {
            "hard": torch.cat([train.images[:0], *hard]),
            "sha256": torch.tensor(known, dtype=torch.uint8).view(len(rows), 32),
        }

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Set the corners."""
        stamped = images.clone()
        patch = torch.tensor(PATCH, dtype=torch.uint8, device=images.device)
        for which, mirrored in enumerate(((), (1,), (0, 1), (0,))):
            corner(stamped, which, 3)[:] = patch.flip(mirrored)
        return stamped

    def stamp_in_training(self, images: ByteImages, state: TriggerState, generator: torch.Generator) -> ByteImages:
        """Set the corners of the adversarial forms; images without one stay as they are otherwise."""
        places = {bytes(digest.tolist()): row for row, digest in enumerate(state["sha256"])}
        found = [places.get(_digest(image)) for image in images]
        harder = [image if row is None else state["hard"][row] for image, row in zip(images, found, strict=True)]
        return self.stamp(torch.stack(harder) if harder else images)


def _digest(image: UInt8[Tensor, "c h w"]) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
