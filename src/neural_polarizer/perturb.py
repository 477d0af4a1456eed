"""The inner problem: adversarial perturbations that stand in for the unknown trigger (paper eqs. 5, 8, 10)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.errors import BadInputError

StepRule = Literal["sign", "gradient"]

STRIDE = 1.5
"""How far the steps of ``perturb_features`` would lead, in radii."""


@dataclass(frozen=True)
class Ball:
    """All perturbations up to a radius, in pixel units of [0, 1], a sample each.

    Args:
        norm: "l2" (over all channels and pixels) or "linf".
        radius: rho, not negative: one for all samples, or one a sample as a tensor ``(n,)``.
    """

    norm: Literal["l2", "linf"]
    radius: float | Tensor

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
    cells: int | None = None,
) -> Float[Tensor, "m c h w"]:
    """Projected gradient steps on the cross-entropy.

    Targeted: towards ``labels`` (eq. 8; eq. 10 if universal). Untargeted: away from them (eq. 7). The network sees
    ``clip(pixels + delta, 0, 1)``. Only ``delta`` gets a gradient; no parameter's ``.grad`` is touched.

    Args:
        predict: pixels to logits; deterministic, in evaluation mode.
        pixels: the clean images, in [0, 1].
        labels: targets (targeted) or true labels (untargeted).
        ball: the constraint on each perturbation.
        steps: number of steps, 0 or more.
        step_size: alpha, in pixel units.
        targeted: descend (True) or ascend (False).
        universal: one perturbation for the whole batch, from the summed gradient.
        rule: "sign" steps by ``alpha * sign(g)``; "gradient" by ``alpha * sqrt(d) * g / |g|_2`` with d the number
            of values of an image, so that both rules take steps of the same length.
        stop_above: stop once more than this share of the batch is classified as ``labels`` (targeted only). The
            test reads the next step's forward pass, so it costs nothing.
        start: where to begin (it is projected first); None begins at zero.
        cells: if given, each step leads where a grid of so many cells a side can follow (``smoothed``), so that the
            perturbation is smooth if ``start`` is and the rule is "gradient".

    Returns:
        The perturbations: m = n, or m = 1 if universal. Inside the ball; not clipped to the pixel range.
    """
    delta = torch.zeros_like(pixels[:1] if universal else pixels) if start is None else ball.project(start)
    for step in range(steps):
        point = delta.requires_grad_()
        logits = predict(clip(pixels + point)).float()
        if stop_above is not None and targeted and step > 0:
            reached = (logits.argmax(dim=1) == labels).float().mean()
            if reached > stop_above:
                break
        delta = stepped(
            point, logits, labels, ball=ball, step_size=step_size, targeted=targeted, rule=rule, cells=cells
        )
    return delta.detach()


def perturb_features(
    predict: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    labels: Int64[Tensor, " n"],
    groups: Int64[Tensor, " n"],
    *,
    radius: float,
    steps: int,
    targeted: bool = True,
) -> Float[Tensor, "n ..."]:
    """Perturbations of features: projected normalised gradient steps in an L2 ball, as ``perturb`` has for pixels.

    All lengths are in units of each image's own feature norm. This is our own (docs/performance.md): what triggers of
    any kind do to pixels, the layers in front of the features have made a direction there.

    Args:
        predict: shifts ``(n, *shape)`` of the features, in these units, to logits; deterministic.
        shape: of one image's features.
        labels: targets (targeted) or true labels (untargeted).
        groups: images with the same number have one perturbation in common, from their summed gradient.
        radius: of the ball.
        steps: number of steps, 0 or more; together they are STRIDE radii long.
        targeted: descend (True) or ascend (False).

    Returns:
        The shifts, one for each image.
    """
    names, owner = groups.unique(return_inverse=True)
    shift = torch.zeros(len(names), *shape, device=labels.device)
    step_size = STRIDE * radius / max(steps, 1) / math.prod(shape) ** 0.5
    for _ in range(steps):
        point = shift.requires_grad_()
        logits = predict(point[owner]).float()
        ball = Ball("l2", radius)
        shift = stepped(point, logits, labels, ball=ball, step_size=step_size, targeted=targeted, rule="gradient")
    return shift.detach()[owner]


def stepped(
    point: Float[Tensor, "m ..."],
    logits: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    *,
    ball: Ball,
    step_size: float,
    targeted: bool = True,
    rule: StepRule = "sign",
    cells: int | None = None,
    keep_graph: bool = False,
) -> Float[Tensor, "m ..."]:
    """One projected gradient step of ``perturb`` from ``point``, which the ``logits`` depend on.

    ``keep_graph`` leaves the graph of ``logits`` for one more backward pass.
    """
    loss = F.cross_entropy(logits, labels, reduction="sum")
    # Unlike backward(), this leaves every parameter's .grad alone.
    (gradient,) = torch.autograd.grad(loss, point, retain_graph=keep_graph)
    if cells is not None:
        gradient = smoothed(gradient, cells)
    length = -step_size if targeted else step_size
    return ball.project(point.detach() + length * _direction(gradient, rule))


def clip(values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """``clamp(0, 1)`` with gradient 1 at 0 and 1 themselves, whatever ``torch.clamp`` of this version has there.

    Black and white pixels are the most common values of many images: without a gradient there no perturbation could
    ever begin to change them.
    """
    inside = (values >= 0) & (values <= 1)
    return torch.where(inside, values, values.detach().clamp(0, 1))


def smoothed(gradient: Float[Tensor, "m c h w"], cells: int) -> Float[Tensor, "m c h w"]:
    """The direction in pixels of a gradient step that is taken in the values of a coarse grid.

    Between the centres of ``cells`` x ``cells`` equal areas it is interpolated bilinearly, delta = U z V^T. A step
    along the gradient by z, U^T g V, moves delta by U U^T g V V^T.
    """
    height, width = (grid_kernel(size, cells).to(gradient) for size in gradient.shape[2:])
    return height @ gradient @ width


def grid_kernel(size: int, cells: int) -> Float[Tensor, "size size"]:
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
