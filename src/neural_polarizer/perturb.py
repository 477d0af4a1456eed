"""The inner problem: adversarial perturbations that stand in for the unknown trigger (paper eqs. 5, 8, 10)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.errors import BadInputError

StepRule = Literal["sign", "gradient"]


@dataclass(frozen=True)
class Ball:
    """All perturbations up to a radius, in pixel units of [0, 1], a sample each."""

    norm: Literal["l2", "linf"]  # "l2" (over all channels and pixels) or "linf"
    radius: float | Tensor  # rho, not negative: one for all samples, or one a sample as a tensor ``(n,)``

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise BadInputError(f"the norm must be l2 or linf, got {self.norm!r}")
        if not isinstance(self.radius, Tensor) and not self.radius >= 0:
            raise BadInputError(f"the radius must not be negative, got {self.radius}")

    def project(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The nearest perturbation inside the ball, for each sample."""
        radius = torch.as_tensor(self.radius, dtype=delta.dtype, device=delta.device).view(-1, *[1] * (delta.ndim - 1))
        if self.norm == "linf":
            return delta.clamp(-radius, radius)
        return delta * (radius / each_length(delta).clamp_min(1e-12)).clamp_max(1)


def perturb(
    predict: Callable[[Tensor], Tensor],
    pixels: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    ball: Ball,
    steps: int,
    step_size: float,
    targeted: bool = True,
    universal: bool = False,
    rule: StepRule = "sign",
    stop_above: float | None = None,
    start: Float[Tensor, "m c h w"] | None = None,
) -> Float[Tensor, "m c h w"]:
    """Projected gradient steps on the cross-entropy.

    Targeted: towards ``labels`` (eq. 8; eq. 10 if universal). Untargeted: away from them (eq. 7). The network sees
    ``clip(pixels + delta, 0, 1)``. Only ``delta`` gets a gradient; no parameter's ``.grad`` is touched.

    Args:
        predict: pixels to logits; deterministic, in evaluation mode.
        pixels: the clean images, in [0, 1].
        labels: targets (targeted) or true labels (untargeted).
        ball: the constraint on each perturbation, which is not clipped to the pixel range.
        steps: number of steps, 0 or more.
        step_size: alpha, in pixel units.
        targeted: descend (True) or ascend (False).
        universal: one perturbation for the whole batch (m = 1), from the summed gradient; otherwise m = n.
        rule: "sign" steps by ``alpha * sign(g)``; "gradient" by ``alpha * sqrt(d) * g / |g|_2`` with d the number
            of values of an image, so that both rules take steps of the same length.
        stop_above: stop once more than this share of the batch is classified as ``labels`` (targeted only).
        start: where to begin (it is projected first); None begins at zero.
    """
    delta = torch.zeros_like(pixels[:1] if universal else pixels) if start is None else ball.project(start)
    length = -step_size if targeted else step_size
    for step in range(steps):
        point = delta.requires_grad_()
        logits = predict(clip(pixels + point)).float()
        if stop_above is not None and targeted and step > 0 and _share(logits, labels) > stop_above:
            break
        # Unlike backward(), this leaves every parameter's .grad alone.
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), point)
        delta = ball.project(point.detach() + length * _direction(gradient, rule))
    return delta.detach()


def _share(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Tensor:
    return (logits.argmax(dim=1) == labels).float().mean()  # a tensor: compared with a threshold in its precision


def clip(values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """``clamp(0, 1)`` with gradient 1 at 0 and 1 themselves, whatever ``torch.clamp`` of this version has there.

    Black and white pixels are the most common values of many images: without a gradient there no perturbation could
    ever begin to change them.
    """
    inside = (values >= 0) & (values <= 1)
    return torch.where(inside, values, values.detach().clamp(0, 1))


def smoothed(values: Float[Tensor, "m c h w"], cells: int) -> Float[Tensor, "m c h w"]:
    """The direction in pixels of a gradient step that is taken in the values of a coarse grid.

    Between the centres of ``cells`` x ``cells`` equal areas it is interpolated bilinearly, delta = U z V^T. A step
    along the gradient by z, U^T g V, moves delta by U U^T g V V^T.
    """
    height, width = (_grid_kernel(size, cells).to(values) for size in values.shape[2:])
    return height @ values @ width


def _grid_kernel(size: int, cells: int) -> Float[Tensor, "size size"]:
    """U U^T of ``smoothed`` along one axis; the identity where there are no more pixels than cells."""
    if size <= cells:
        return torch.eye(size)
    tents = F.interpolate(torch.eye(cells)[None], size=size, mode="linear")[0]
    return tents.T @ tents


def each_length(values: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """The L2 norm of each row of a batch, in a shape that multiplies it."""
    return values.flatten(1).norm(dim=1).view(-1, *[1] * (values.ndim - 1))


def _direction(gradient: Float[Tensor, "m ..."], rule: StepRule) -> Float[Tensor, "m ..."]:
    if rule == "sign":
        return gradient.sign()
    return gradient / each_length(gradient).clamp_min(1e-12) * math.prod(gradient.shape[1:]) ** 0.5
