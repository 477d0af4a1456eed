"""BppAttack (Wang et al., 2022): fewer grey levels, with dithering; images with another image's residual stay clean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Category, TriggerState, Workshop
from neural_polarizer.attacks.batches import BatchAttack, BatchPoisoner, Mixed
from neural_polarizer.attacks.stamping import added, rounded
from neural_polarizer.data.images import ByteImages, ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Bpp(BatchAttack):
    """Backdoor images have few levels a channel; images with another one's residual of quantisation keep their label.

    These negatives teach the victim that only the very levels are the trigger, not noise of that size.

    Source: Wang et al., "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image
    Quantization and Contrastive Adversarial Learning", CVPR 2022; settings of BackdoorBench.
    Departures: dithering is on, as in the paper (BackdoorBench has it off); every image draws its own crop and flip;
    the residuals are those of images as they are in the data set.

    Args:
        levels: of each channel, from 0 to 255.
        dithering: spread each pixel's error over its neighbours (Floyd and Steinberg).
        negative_ratio: images with another one's residual for each backdoor image.
    """

    title: ClassVar[str] = "BppAttack"
    category: ClassVar[Category] = Category("non-additive", "global", "invisible", "specific")
    recipe: ClassVar[Mapping[str, Any]] = {"crop_padding": 5, "crop_share": 0.8, "rotation": 10.0}
    laptop_epochs: ClassVar[int] = 8
    turns: ClassVar[bool] = False

    levels: int = 8
    dithering: bool = True
    negative_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.levels <= 256 or self.negative_ratio < 0:
            found = f"got {self.levels}, {self.negative_ratio}"
            raise BadInputError(f"Bpp needs 2 to 256 levels and a negative ratio of at least 0, {found}")

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Quantise."""
        return rounded(dithered(images, self.levels) if self.dithering else quantised(images.double(), self.levels))

    def poisoner(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> "_Quantiser":
        """Batches of backdoor images, negatives and clean images."""
        return _Quantiser(self, train)


class _Quantiser(BatchPoisoner[Bpp]):
    """Augments each batch and then poisons it: first the backdoor rows, then the negatives."""

    def mix(
        self, images: ByteImages, labels: Int64[Tensor, " n"], schedule: Schedule, generator: torch.Generator
    ) -> Mixed:
        poisoned, end = self.rows(len(images), self.attack.negative_ratio, generator)
        images = schedule.augment(images, generator)
        partners = torch.randint(len(self.train), (end - poisoned,), generator=generator)
        others = self.train.images[partners].to(images.device)
        stamped = self.attack.stamp(torch.cat([images[:poisoned], others]))
        residual = stamped[poisoned:].short() - others.short()
        shaken = added(images[poisoned:end], residual)
        return Mixed(to_pixels(torch.cat([stamped[:poisoned], shaken, images[end:]])), poisoned)


def quantised(values: Float[Tensor, "..."], levels: int) -> Float[Tensor, "..."]:
    """The nearest of ``levels`` values from 0 to 255; beyond them the same steps go on."""
    step = 255 / (levels - 1)
    return (values / step).round() * step


def dithered(images: ByteImages, levels: int) -> Float[Tensor, "n c h w"]:
    """Floyd and Steinberg's dithering, row by row from the left; the error goes to the right and to the row below.

    7/16 right, 3/16 below left, 5/16 below, 1/16 below right. Column t of the sheared images holds the pixels
    (y, t - 2 y), which do not depend on each other: so many at once.
    """
    height, width = images.shape[2:]
    length = width + 2 * (height - 1)
    columns = torch.arange(length, device=images.device) - 2 * torch.arange(height, device=images.device)[:, None]
    inside = (columns >= 0) & (columns < width)
    gathered = columns.clamp(0, width - 1).expand(*images.shape[:2], -1, -1)
    sheared = F.pad(images.double().gather(3, gathered) * inside, (0, 3))
    for t in range(length):
        old = sheared[..., t].clone()
        new = quantised(old, levels)
        error = (old - new) * inside[:, t]
        sheared[..., t] = new
        sheared[..., t + 1] += error * (7 / 16)
        for step, share in ((1, 3), (2, 5), (3, 1)):
            sheared[..., 1:, t + step] += error[..., :-1] * (share / 16)
    places = torch.arange(width, device=images.device) + 2 * torch.arange(height, device=images.device)[:, None]
    return sheared.gather(3, places.expand(*images.shape[:2], -1, -1))
