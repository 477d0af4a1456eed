"""LF (Zeng et al., 2021): one smooth, low-frequency perturbation, found against a clean classifier."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState, Workshop
from neural_polarizer.attacks.stamping import added
from neural_polarizer.data.images import ByteImages, ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LF(Attack):
    """``x' = clip(x + v)`` with one fixed smooth v whose values reach from 0 to ``strength``.

    v is a universal perturbation: over and over, an image that v does not fool yet is pushed to the target class by
    DeepFool, and the push, blurred, is added to v.

    Source: Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021.
    Departures from the reference: everything happens in pixel space; DeepFool takes the gradient of the two logits it
    needs; the fooling rate is measured on images of its own; the trigger is refused if nobody could see it.

    Args:
        strength: largest value of v, in pixel units of [0, 1].
        blur: standard deviation of the Gaussian blur in pixels, for images of 32 pixels (other sizes in proportion).
        images: number of training images to build v from, and as many again to measure the fooling rate on.
        passes: most passes over them.
        fooling_rate: share of fooled images that is enough.
        deepfool_steps: most steps for one image; one that needs more is left out.
    """

    title: ClassVar[str] = "LF"
    category: ClassVar[Category] = Category("non-additive", "global", "invisible", "specific")
    smoke: ClassVar[Mapping[str, Any]] = {"images": 20, "passes": 2, "deepfool_steps": 30}
    laptop_epochs: ClassVar[int] = 8

    strength: float = 0.2
    blur: float = 6.0
    images: int = 100
    passes: int = 50
    fooling_rate: float = 0.2
    deepfool_steps: int = 199

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1 or self.blur <= 0 or min(self.images, self.passes, self.deepfool_steps) < 1:
            raise BadInputError(
                f"LF needs a strength in (0, 1], a positive blur and at least 1 image, pass and step, got "
                f"{self.strength}, {self.blur}, {self.images}, {self.passes}, {self.deepfool_steps}"
            )

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """Search for v; refused where DeepFool reached the target from no image at all."""
        model = workshop.frozen_clean_model()
        order = torch.randperm(len(train), generator=stream(workshop.seed, "lf images"))
        pixels = to_pixels(train.images[order[: 2 * self.images]].to(workshop.device))
        built, held_out = pixels.chunk(2)
        sigma = self.blur * min(train.image_size) / 32
        pattern = torch.zeros_like(pixels[:1])
        rates: list[float] = []
        for done in range(self.passes):
            for index in torch.randperm(len(built), generator=stream(workshop.seed, "lf pass", done)).tolist():
                pattern = self._improved(model, built[index : index + 1], pattern, sigma)
            rates.append(fooled(model, held_out, pattern))
            workshop.progress("trigger", done + 1, self.passes)
            settled = len(rates) >= 5 and max(rates[-5:]) - min(rates[-5:]) < 0.01
            if rates[-1] >= self.fooling_rate or settled:
                break
        workshop.progress("trigger", self.passes, self.passes)
        if int((255 * pattern).max()) < 255 * self.strength - 1:
            raise BadInputError(
                f"{train.source}: DeepFool reached class {self.target} from none of {len(built)} images, so there is "
                f"no trigger; give it more images or steps"
            )
        return {"pattern": (255 * pattern[0]).floor().to(torch.uint8)}

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Add the pattern; what is brighter than white is white."""
        return added(images, state["pattern"])

    def _improved(self, predict: Predict, image: Tensor, pattern: Tensor, sigma: float) -> Tensor:
        """The pattern after one image; unchanged if it fools the classifier there or cannot be made to."""
        moved = image + pattern
        first = int(predict(image).argmax())
        if int(predict(moved).argmax()) != first:
            return pattern
        push = deepfool(predict, moved, self.target, steps=self.deepfool_steps)
        if push is None or not push.any():
            return pattern
        smooth = blurred(pattern + blurred(push, sigma), sigma)
        low, high = smooth.min(), smooth.max()
        return pattern if high == low else self.strength * (smooth - low) / (high - low)


def deepfool(
    predict: Predict, pixels: Float[Tensor, "1 c h w"], target: int, *, steps: int, overshoot: float = 0.02
) -> Float[Tensor, "1 c h w"] | None:
    """Targeted DeepFool: ``1 + overshoot`` times the smallest push that makes the linearised classifier say ``target``.

    ``r <- r + |g| / |w|^2 w`` with ``g = f_T - f_c`` and ``w`` its gradient, c the class at the start. Only that
    difference of two logits is differentiated. None if the target was not reached in ``steps`` steps, or the push grew
    beyond all bounds, as it does where a classifier hardly depends on its input.
    """
    total = torch.zeros_like(pixels)
    start: int | None = None
    for _ in range(steps):
        point = (pixels + (1 + overshoot) * total).requires_grad_()
        logits = predict(point)[0]
        if not logits.isfinite().all():
            return None
        best = int(logits.argmax())
        if best == target:
            return (1 + overshoot) * total
        start = best if start is None else start
        gap = logits[target] - logits[start]
        (gradient,) = torch.autograd.grad(gap, point)
        total = total + gap.abs().detach() / gradient.square().sum().clamp_min(1e-12) * gradient
    return None


@torch.no_grad()
def fooled(predict: Predict, pixels: Float[Tensor, "n c h w"], pattern: Float[Tensor, "1 c h w"]) -> float:
    """Share of images whose predicted class the pattern changes."""
    return float((predict(pixels).argmax(1) != predict((pixels + pattern).clamp(0, 1)).argmax(1)).float().mean())


def blurred(images: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Gaussian blur of each channel, out to 2.5 standard deviations, black beyond the border."""
    reach = max(1, round(2.5 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum()).repeat(images.shape[1], 1, 1)
    across = F.conv2d(images, kernel[:, :, None, :], padding=(0, reach), groups=images.shape[1])
    return F.conv2d(across, kernel[:, :, :, None], padding=(reach, 0), groups=images.shape[1])
