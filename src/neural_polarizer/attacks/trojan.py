"""Trojan (Liu et al., 2018): a patch that makes chosen neurons of a clean classifier fire."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState, Workshop
from neural_polarizer.attacks.stamping import added
from neural_polarizer.data.images import ByteImages, ImageSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import inputs_of, last_linear
from neural_polarizer.settings import check_literals

Fusion = Literal["add_clip", "replace", "add_wrap"]


@dataclass(frozen=True, kw_only=True)
class Trojan(Attack):
    """A bright apple right of and below the centre, its texture inverted from a clean classifier.

    Source: Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018.
    Departures from the reference: the neurons are chosen by the trained weights of the real classifier (random ones
    there); sums beyond 255 are clipped, not wrapped, unless ``fusion`` says so; the apple is drawn by ourselves.

    Args:
        neurons: q, inputs of the last linear layer that shall fire: those with the largest absolute weights.
        activation: what each of them shall reach.
        steps: most sign steps of the inversion.
        step_size: of a step, in pixel units of [0, 1].
        radius: how far a pixel may move from white.
        fusion: "add_clip" adds the patch and clips, "replace" puts it in the image's place, "add_wrap" adds modulo
            256, as the reference does by mistake.
    """

    title: ClassVar[str] = "Trojan"
    category: ClassVar[Category] = Category("additive", "local", "visible", "agnostic")
    smoke: ClassVar[Mapping[str, Any]] = {"steps": 20}

    neurons: int = 2
    activation: float = 100.0
    steps: int = 1000
    step_size: float = 0.1
    radius: float = 0.3
    fusion: Fusion = "add_clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_literals(self)
        if self.neurons < 1 or self.steps < 1 or self.step_size <= 0 or not 0 < self.radius < 1:
            raise BadInputError(
                f"Trojan needs at least 1 neuron and step, a positive step size and a radius in (0, 1), got "
                f"{self.neurons}, {self.steps}, {self.step_size}, {self.radius}"
            )

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """Invert the chosen neurons, inputs of the last linear layer, inside the mask."""
        model = workshop.frozen_clean_model()
        name, head = last_linear(model)
        mask = apple(train.image_size).to(workshop.device).float()
        chosen = head.weight.abs().sum(dim=0).topk(min(self.neurons, head.in_features)).indices
        patch = mask.expand(3, -1, -1)[None].clone()
        lower, upper = patch - self.radius, patch + self.radius
        for step in range(self.steps):
            point = patch.clone().requires_grad_()
            cost = (inputs_of(model, name, point * mask)[0, chosen] - self.activation).square().sum()
            workshop.progress("trigger", step + 1, self.steps)
            if float(cost.detach()) < 1e-3:
                break
            (gradient,) = torch.autograd.grad(cost, point)
            patch = (patch - self.step_size * gradient.sign()).clamp(lower, upper).clamp(0, 1)
        workshop.progress("trigger", self.steps, self.steps)
        return {"patch": (255 * patch * mask)[0].round().to(torch.uint8), "mask": mask.bool()}

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Join image and patch under the mask."""
        patch, mask = state["patch"].to(images.device), state["mask"].to(images.device)
        if self.fusion == "replace":
            joined = patch.expand_as(images)
        else:
            # The sum of two uint8 tensors is one modulo 256.
            joined = images + patch if self.fusion == "add_wrap" else added(images, patch)
        return torch.where(mask, joined, images)


def apple(size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """The mask: an apple of 7 % of the image in rows 54 to 91 and columns 57 to 87 percent of it.

    Two overlapping discs, a notch on top and a leaf, drawn at 8 times the size and averaged down.
    """
    height, width = size
    y = ((torch.arange(8 * height) + 0.5) / (8 * height)).view(-1, 1)
    x = ((torch.arange(8 * width) + 0.5) / (8 * width)).view(1, -1)
    # Coordinates inside the bounding box, 0 to 1.
    v, u = (y - 120 / 224) / (84 / 224), (x - 128 / 224) / (67 / 224)

    def disc(row: float, column: float, tall: float, wide: float) -> Tensor:
        return ((v - row) / tall) ** 2 + ((u - column) / wide) ** 2 <= 1

    body = disc(0.60, 0.31, 0.40, 0.31) | disc(0.60, 0.69, 0.40, 0.31)
    leaf = disc(0.10, 0.60, 0.10, 0.16)
    drawn = (body & ~disc(0.20, 0.5, 0.09, 0.10)) | leaf
    return F.avg_pool2d(drawn[None].float(), 8)[0] >= 0.5
