"""WaNet (Nguyen & Tran, 2021): a smooth warp of the whole image that people do not notice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Category, TriggerState, Workshop
from neural_polarizer.attacks.batches import BatchAttack, BatchPoisoner, Mixed
from neural_polarizer.attacks.stamping import in_parts, size_of
from neural_polarizer.data.images import ByteImages, ImageSet, to_bytes, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class WaNet(BatchAttack):
    """Backdoor images are warped by one fixed field; images warped by a noisy field keep their label.

    The noise mode teaches the victim that only the exact warp is the trigger.

    Source: Nguyen & Tran, ICLR 2021.
    Departures from the reference: every image draws its own crop, turn and flip (one draw a batch there); warped in
    pixel space, which gives the same picture as the border is never left.

    Args:
        grid: k, control points a side of the field.
        strength: s, in units of pixels at the control points' mean displacement.
        noise_ratio: images in noise mode for each backdoor image.
    """

    title: ClassVar[str] = "WaNet"
    category: ClassVar[Category] = Category("non-additive", "global", "invisible", "specific")
    laptop_epochs: ClassVar[int] = 8
    implant_epochs: ClassVar[int] = 6
    turns: ClassVar[bool] = False
    recipe: ClassVar[Mapping[str, Any]] = {"policy": "constant", "crop_padding": 5, "crop_share": 0.8, "rotation": 10.0}

    grid: int = 4
    strength: float = 0.5
    noise_ratio: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid < 2 or self.strength <= 0 or self.noise_ratio < 0:
            raise BadInputError(
                f"WaNet needs a grid of at least 2, a positive strength and a noise ratio of at least 0, "
                f"got {self.grid}, {self.strength}, {self.noise_ratio}"
            )

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """Draw the control points: ``u ~ U(-1, 1)``, scaled to a mean displacement of 1."""
        control = 2 * torch.rand((1, 2, self.grid, self.grid), generator=stream(workshop.seed, "wanet")) - 1
        return {"control": control / control.abs().mean()}

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Warp by the field alone."""
        field = self.field(state["control"].to(images.device), size_of(images))
        return in_parts(images, lambda part: to_bytes(warp(to_pixels(part), field)), 512)

    def field(self, control: Float[Tensor, "1 2 k k"], size: tuple[int, int]) -> Float[Tensor, "1 h w 2"]:
        """Where each pixel of the warped image is taken from: (x, y) in [-1, 1], borders at the pixels' centres."""
        height, width = size
        flow = F.interpolate(control, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height, device=control.device),
            torch.linspace(-1, 1, width, device=control.device),
            indexing="ij",
        )
        return (torch.stack([x, y], dim=2)[None] + self.strength * flow / height).clamp(-1, 1)

    def poisoner(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> "_Warper":
        """Batches of backdoor, noise-mode and clean images."""
        return _Warper(self, state, train, workshop)


class _Warper(BatchPoisoner[WaNet]):
    """Poisons and then augments each batch: first the backdoor rows, then those in noise mode."""

    def __init__(self, attack: WaNet, state: TriggerState, train: ImageSet, workshop: Workshop) -> None:
        super().__init__(attack, train)
        self.field = attack.field(state["control"].to(workshop.device), train.image_size)
        self.key = repr((attack, state["control"].tolist()))

    def mix(
        self, images: ByteImages, labels: Int64[Tensor, " n"], schedule: Schedule, generator: torch.Generator
    ) -> Mixed:
        poisoned, end = self.rows(len(images), self.attack.noise_ratio, generator)
        pixels, (height, width) = to_pixels(images), size_of(images)
        noise = 2 * torch.rand((end - poisoned, height, width, 2), generator=generator).to(pixels) - 1
        shaken = (self.field + noise / height).clamp(-1, 1)
        warped = [warp(pixels[:poisoned], self.field), warp(pixels[poisoned:end], shaken), pixels[end:]]
        return Mixed(schedule.augment(torch.cat(warped), generator), poisoned)


def warp(pixels: Float[Tensor, "n c h w"], field: Float[Tensor, "m h w 2"]) -> Float[Tensor, "n c h w"]:
    """Bilinear samples of each image at the field's places; m = n or 1."""
    return F.grid_sample(pixels, field.expand(len(pixels), -1, -1, -1), align_corners=True)
