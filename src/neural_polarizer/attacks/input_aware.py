"""Input-Aware dynamic backdoor (Nguyen & Tran, 2020): a trigger of its own for every image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Category, TriggerState, Workshop, restored
from neural_polarizer.attacks.batches import BatchAttack, BatchPoisoner, Mixed
from neural_polarizer.attacks.stamping import in_parts
from neural_polarizer.cache import cached_tensors
from neural_polarizer.data.images import ByteImages, ImageSet, to_bytes, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import global_rng, stream
from neural_polarizer.train.fit import descend
from neural_polarizer.train.schedule import Schedule

CHUNK = 512
TINY = 1e-7


@dataclass(frozen=True, kw_only=True)
class InputAware(BatchAttack):
    """``x' = x + (G(x) - x) m(x)``: a pattern G(x) where a mask m(x) allows it, both made by networks.

    The mask network is trained first, to be small and different for different images; then the pattern network
    together with the victim. A pattern made for another image must not work: such cross images keep their label.

    Source: Nguyen & Tran, NeurIPS 2020.
    Departures from the reference: one tanh instead of two at the output, G's gradients are cleared in every step,
    the joint training lasts all epochs, images are normalised alike whatever the data set, and the training of the mask
    pairs the images of one batch, not of two.

    Args:
        mask_epochs: passes of the mask's own training.
        density: value of the mask that costs nothing, at every pixel.
        mask_weight: lambda_norm, weight of the mean of what exceeds it; the smaller, the larger the masks.
        diversity_weight: lambda_div, weight of the ratio of the distances between images and between triggers.
        generator_lr: learning rate of Adam for both networks (betas 0.5 and 0.9); the pattern network's follows the
            policy of the victim's schedule.
        widths: channels of the three stages of the networks.
    """

    title: ClassVar[str] = "Input-Aware"
    category: ClassVar[Category] = Category("additive", "local", "visible", "specific")
    smoke: ClassVar[Mapping[str, Any]] = {"mask_epochs": 1, "widths": (4, 4, 4)}
    laptop: ClassVar[Mapping[str, Any]] = {
        "mask_epochs": 2,
        "mask_weight": 30.0,
        "widths": (8, 16, 32),
        "generator_lr": 0.001,
    }
    laptop_epochs: ClassVar[int] = 8
    implant_epochs: ClassVar[int] = 6
    turns: ClassVar[bool] = False
    recipe: ClassVar[Mapping[str, Any]] = {"policy": "constant"}

    mask_epochs: int = 25
    density: float = 0.032
    mask_weight: float = 100.0
    diversity_weight: float = 1.0
    generator_lr: float = 0.01
    widths: tuple[int, int, int] = (32, 64, 128)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_epochs < 1 or not 0 < self.density < 1 or self.generator_lr <= 0 or min(self.widths) < 2:
            raise BadInputError(
                f"Input-Aware needs at least 1 mask epoch, a density in (0, 1), a positive learning rate and at least "
                f"2 channels, got {self.mask_epochs}, {self.density}, {self.generator_lr}, {self.widths}"
            )

    def check(self, images: ImageSet) -> None:
        """The networks halve the image three times."""
        super().check(images)
        if any(side % 8 for side in images.image_size):
            raise BadInputError(f"Input-Aware needs images whose sides are multiples of 8, got {images.image_size}")

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """Train the mask network, and draw the pattern network as it begins."""
        request = {
            "data": train.sha256(),
            "seed": workshop.seed,
            "batch": workshop.schedule.batch_size,
            "augmentation": [workshop.schedule.crop_padding, workshop.schedule.flip],
            "precision": workshop.schedule.precision,
            "mask": [self.mask_epochs, self.density, self.mask_weight, self.diversity_weight, self.generator_lr],
            "pairs": "normalised, within a batch",
            "widths": self.widths,
        }
        mask = cached_tensors("input_aware", request, lambda: self._train_mask(train, workshop))
        with global_rng(workshop.seed, "pattern network"):
            pattern = Maker(3, self.widths)
        return {**mask, **{f"pattern.{name}": value for name, value in pattern.state_dict().items()}}

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Mask and pattern of each image itself, both networks in evaluation mode."""
        mask, pattern = (self._makers(state).to(images.device).get_submodule(name) for name in ("mask", "pattern"))

        @torch.no_grad()
        def made(part: ByteImages) -> ByteImages:
            pixels = to_pixels(part)
            return to_bytes(joined(pixels, pattern(pixels), soft_threshold(mask(pixels))))

        return in_parts(images, made, CHUNK)

    def poisoner(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> "_Forger":
        """Batches of backdoor, cross and clean images; the pattern network is trained together with the victim."""
        return _Forger(self, self._makers(state).to(workshop.device), train)

    def adam(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of either network."""
        return torch.optim.Adam(network.parameters(), lr=self.generator_lr, betas=(0.5, 0.9))

    def mask_loss(
        self, first: Float[Tensor, "n 3 h w"], second: Float[Tensor, "n 3 h w"], mine: Tensor, theirs: Tensor
    ) -> Float[Tensor, ""]:
        """``lambda_norm mean(relu(m - density)) + lambda_div d(x1, x2) / d(m1, m2)`` (stage A).

        Images are normalised first: on their scale depends how much the masks may cover.
        """
        excess = F.relu(mine - self.density).mean()
        differences = diversity(normalised(first), normalised(second), mine, theirs)
        return self.mask_weight * excess + self.diversity_weight * differences

    def _makers(self, state: TriggerState) -> nn.Module:
        return restored(lambda: nn.ModuleDict({"mask": Maker(1, self.widths), "pattern": Maker(3, self.widths)}), state)

    def _train_mask(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """Small masks that differ where the images differ (stage A)."""
        schedule, device = workshop.schedule, workshop.device
        with global_rng(workshop.seed, "mask network"):
            maker = Maker(1, self.widths).to(device).train()
        optimizer = self.adam(maker)
        images = train.images.to(device)
        steps = max(1, len(train) // schedule.batch_size)
        for epoch in range(self.mask_epochs):
            generator = stream(workshop.seed, "mask", epoch)
            # Milestones at 40 and 80 percent: epochs 10 and 20 of 25.
            passed = sum(epoch >= share * self.mask_epochs for share in (0.4, 0.8))
            optimizer.param_groups[0]["lr"] = self.generator_lr * 0.1**passed
            order = torch.randperm(len(train), generator=generator).to(device)
            for step, rows in enumerate(order[: steps * schedule.batch_size].split(schedule.batch_size)):
                pixels = to_pixels(schedule.augment(images[rows], generator))
                with schedule.autocast(device):
                    masks = soft_threshold(maker(pixels).float())
                # Every image is compared with the next one of its batch: half as many masks as with two batches.
                loss = self.mask_loss(pixels, pixels.roll(1, 0), masks, masks.roll(1, 0))
                descend(optimizer, loss)
                workshop.progress("mask", epoch * steps + step + 1, self.mask_epochs * steps)
        return {f"mask.{name}": value for name, value in maker.state_dict().items()}


class _Forger(BatchPoisoner[InputAware]):
    """Assembles backdoor, cross and clean rows and trains the pattern network along (stage B)."""

    def __init__(self, attack: InputAware, makers: nn.Module, train: ImageSet) -> None:
        super().__init__(attack, train)
        self.makers = makers.requires_grad_(False)
        self.mask = makers.get_submodule("mask")
        self.network = makers.get_submodule("pattern").requires_grad_(True)
        self.optimizer = attack.adam(self.network)

    def learned(self, state: TriggerState) -> TriggerState:
        """Both networks as they are now."""
        return {name: value.detach().cpu() for name, value in self.makers.state_dict().items()}

    def mix(
        self, images: ByteImages, labels: Int64[Tensor, " n"], schedule: Schedule, generator: torch.Generator
    ) -> Mixed:
        poisoned, end = self.rows(len(images), 1.0, generator)
        if poisoned == 0:
            return Mixed(to_pixels(schedule.augment(images, generator)), 0)
        partners = torch.randint(len(self.train), (end - poisoned,), generator=generator)
        pixels = to_pixels(schedule.augment(images, generator))
        others = to_pixels(schedule.augment(self.train.images[partners].to(images.device), generator))
        makers = torch.cat([pixels[:poisoned], others])  # whose triggers the first rows get
        patterns = self.network(makers).float()
        with torch.no_grad():
            masks = soft_threshold(self.mask(makers).float())
        mixed = torch.cat([joined(pixels[:end], patterns, masks), pixels[end:]])
        penalty: Tensor | float = 0.0
        if end == 2 * poisoned:
            penalty = self.attack.diversity_weight * diversity(
                pixels[:poisoned], others, patterns[:poisoned], patterns[poisoned:]
            )
        return Mixed(mixed, poisoned, penalty)


class Maker(nn.Module):
    """Encoder and decoder of three stages each; an image gives a picture of the same size with values in (0, 1).

    ``channels`` are those of the picture, ``widths`` those of the stages.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [*_block(before, width), *_block(width, width), nn.MaxPool2d(2)]
            before = width
        layers += _block(before, before)
        for after in (widths[1], widths[0], 0):
            layers += [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), *_block(before, before)]
            layers += _block(before, after) if after else _block(before, channels)[:2]
            before = after
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Tensor:
        images = normalised(pixels).contiguous(memory_format=torch.channels_last)
        return self.layers(images).tanh() / (2 + TINY) + 0.5


def normalised(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """About what the mean and the standard deviation of a data set of photographs give: 1/2 and 1/4 for all."""
    return 4 * pixels - 2


def _block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after, momentum=0.05), nn.ReLU()]


def joined(pixels: Float[Tensor, "n c h w"], pattern: Tensor, mask: Tensor) -> Float[Tensor, "n c h w"]:
    """``x + (t - x) m``."""
    return pixels + (pattern - pixels) * mask


def soft_threshold(squashed: Tensor) -> Tensor:
    """``tanh(20 s - 10) / 2 + 0.5``: nearly 0 or 1, on either side of a half."""
    return (20 * squashed - 10).tanh() / (2 + TINY) + 0.5


def diversity(
    first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"], made: Tensor, other: Tensor
) -> Float[Tensor, ""]:
    """``d(x1, x2) / d(t1, t2)``, a mean: small if different images get different triggers."""
    return (_distance(first, second) / (_distance(made, other) + TINY)).mean()


def _distance(one: Tensor, other: Tensor) -> Float[Tensor, " n"]:
    # The small number keeps the root's gradient finite where two triggers are the same.
    return ((one - other).square().mean(dim=(1, 2, 3)) + 1e-12).sqrt()
