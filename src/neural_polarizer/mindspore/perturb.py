"""The inner problem on MindSpore tensors; ``neural_polarizer.perturb`` has the same for PyTorch, with its reasons."""

import math
from collections.abc import Callable

import mindspore as ms
import torch
from mindspore import ops
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.mindspore.tensors import to_mindspore, to_torch, with_gradient_of
from neural_polarizer.perturb import Ball, StepRule

Predict = Callable[[ms.Tensor], ms.Tensor]


def perturb(
    predict: Predict,
    pixels: ms.Tensor,
    labels: Tensor,
    *,
    ball: Ball,
    steps: int,
    step_size: float,
    targeted: bool = True,
    universal: bool = False,
    rule: StepRule = "sign",
    stop_above: float | None = None,
) -> ms.Tensor:
    """Projected gradient steps on the cross-entropy (eqs. 7, 8, 10), with the settings of ``neural_polarizer.perturb``.

    ``predict`` is deterministic, in evaluation mode, and sees ``clip(pixels + delta)``; no parameter takes part in the
    gradient. ``pixels`` are float32 ``(n, c, h, w)`` in [0, 1]; the result is of their shape, or ``(1, c, h, w)`` if
    universal.
    """
    delta = ops.zeros_like(pixels[:1] if universal else pixels)
    for step in range(steps):
        logits, gradient = _gradient(lambda point: predict(clip(pixels + point)), delta, labels)
        if stop_above is not None and targeted and step > 0:
            reached = (to_torch(logits).argmax(dim=1) == labels).float().mean()
            if reached > stop_above:
                break
        delta = _stepped(delta, gradient, ball=ball, step_size=step_size, targeted=targeted, rule=rule)
    return delta


def clip(values: ms.Tensor) -> ms.Tensor:
    """``clamp(0, 1)`` with gradient 1 at 0 and 1 themselves, from where pixels could not begin to move otherwise."""
    inside = ops.logical_and(values >= 0, values <= 1)
    return ops.where(inside, values, ops.stop_gradient(ops.clamp(values, 0.0, 1.0)))


def project(delta: ms.Tensor, ball: Ball) -> ms.Tensor:
    """The nearest perturbation ``(m, c, h, w)`` inside the ball, for each sample."""
    limit = to_mindspore(torch.as_tensor(ball.radius, dtype=torch.float32).reshape(-1, 1, 1, 1))
    if ball.norm == "linf":
        return ops.maximum(ops.minimum(delta, limit), -limit)
    return delta * ops.clamp(limit / ops.clamp(each_length(delta), min=1e-12), max=1.0)


def each_length(values: ms.Tensor) -> ms.Tensor:
    """The L2 norm of each row of a batch ``(n, c, h, w)``, in a shape that multiplies it."""
    return ops.sqrt(ops.square(values).sum(axis=(1, 2, 3), keepdims=True))


def _gradient(predict: Predict, point: ms.Tensor, labels: Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """The logits at ``point``, and the gradient there of their summed cross-entropy."""

    def loss(point: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        logits = predict(point)
        return with_gradient_of(lambda own: F.cross_entropy(own, labels, reduction="sum"), [logits]), logits

    (_, logits), gradient = ms.value_and_grad(loss, 0, has_aux=True)(point)
    return logits, gradient


def _stepped(
    point: ms.Tensor, gradient: ms.Tensor, *, ball: Ball, step_size: float, targeted: bool, rule: StepRule
) -> ms.Tensor:
    if rule == "sign":
        direction = ops.sign(gradient)
    else:
        direction = gradient / ops.clamp(each_length(gradient), min=1e-12) * math.prod(gradient.shape[1:]) ** 0.5
    return project(point + (-step_size if targeted else step_size) * direction, ball)
