"""WaNet (Nguyen & Tran, 2021): a smooth warp of the whole image that people do not notice."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Attack, Category, Planted, TriggerState, Workshop
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from neural_polarizer.train import Assembled, Schedule, fit


@dataclass(frozen=True, kw_only=True)
class WaNet(Attack):
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

    category: ClassVar[Category] = Category("non-additive", "global", "invisible", "specific")
    laptop_epochs: ClassVar[int] = 8
    implant_epochs: ClassVar[int] = 6
    turns: ClassVar[bool] = False
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"policy": "constant", "crop_padding": 5, "crop_share": 0.8, "rotation": 10.0}
    )

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

    def stamp(self, images: UInt8[Tensor, "n c h w"], state: TriggerState = NOTHING) -> UInt8[Tensor, "n c h w"]:
        """Warp by the field alone."""
        field = self.field(state["control"].to(images.device), (images.shape[2], images.shape[3]))
        parts = [to_bytes(warp(to_pixels(part), field)) for part in images.split(512)]
        return torch.cat(parts) if parts else images.clone()

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

    def plant(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> Planted:
        """Train on batches of backdoor, noise-mode and clean images."""
        warper = _Warper(self, state, train, workshop)
        fit(
            model,
            train,
            workshop.schedule,
            seed=workshop.seed,
            device=workshop.device,
            progress=workshop.progress,
            checkpoint=workshop.checkpoint,
            accomplice=warper,
        )
        return Planted(state, round(self.poison_rate * len(train)))


class _Warper:
    """Poisons and then augments each batch: first the backdoor rows, then those in noise mode."""

    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, attack: WaNet, state: TriggerState, train: ImageSet, workshop: Workshop) -> None:
        self.attack = attack
        self.num_classes = train.num_classes
        self.size = train.image_size
        self.field = attack.field(state["control"].to(workshop.device), train.image_size)
        self.network = nn.Module()
        self.key = repr((attack, state["control"].tolist()))

    def assemble(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        schedule: Schedule,
        generator: torch.Generator,
    ) -> Assembled:
        poisoned = self.attack.poisoned_rows(len(images), generator)
        noisy = min(int(poisoned * self.attack.noise_ratio), len(images) - poisoned)
        pixels = to_pixels(images)
        end = poisoned + noisy
        noise = 2 * torch.rand((noisy, *self.size, 2), generator=generator).to(pixels) - 1
        shaken = (self.field + noise / self.size[0]).clamp(-1, 1)
        warped = [warp(pixels[:poisoned], self.field), warp(pixels[poisoned:end], shaken), pixels[end:]]
        labels = torch.cat([self.attack.relabel(labels[:poisoned], self.num_classes), labels[poisoned:]])
        return Assembled(schedule.augment(torch.cat(warped), generator), labels, 0.0, poisoned)


def warp(pixels: Float[Tensor, "n c h w"], field: Float[Tensor, "m h w 2"]) -> Float[Tensor, "n c h w"]:
    """Bilinear samples of each image at the field's places; m = n or 1."""
    return F.grid_sample(pixels, field.expand(len(pixels), -1, -1, -1), align_corners=True)


def to_bytes(pixels: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """Float pixels in [0, 1] as 8 bits, rounded."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
