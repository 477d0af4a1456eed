"""When NPD does what: its epochs, batches and learning rates, whatever computes them."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.defenses.npd_settings import MAX_EPOCHS, MIN_EPOCHS, MIN_STEPS, NeuralPolarizerSettings
from neural_polarizer.rng import stream

SMALL = 0.1
"""Features of a smaller standard deviation get shorter steps (docs/defaults.md)."""


def steps_an_epoch(count: int, batch_size: int) -> int:
    """How many batches ``count`` images make.

    One value a channel is too few for batch statistics: a last image that is alone joins the batch before.
    """
    steps = math.ceil(count / batch_size)
    return steps - 1 if steps > 1 and count % batch_size == 1 else steps


def epochs(settings: NeuralPolarizerSettings, steps: int) -> int:
    """T, chosen by the number of steps an epoch if the settings leave it open."""
    if settings.epochs is not None:
        return settings.epochs
    return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps)))


def batches(count: int, batch_size: int, *, seed: int, phase: str, epoch: int) -> tuple[Int64[Tensor, " b"], ...]:
    """The rows of each batch of one epoch, on the CPU: all ``count`` images in an order of their own."""
    order = torch.randperm(count, generator=stream(seed, phase, epoch))
    return order.tensor_split([batch_size * step for step in range(1, steps_an_epoch(count, batch_size))])


def learning_rate(settings: NeuralPolarizerSettings, done: int, total: int) -> float:
    """That of the outer step after ``done`` of ``total`` ones."""
    if settings.lr_policy == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done / total))


def feature_units_rate(var: Float[Tensor, " c"]) -> float:
    """The learning rate of gamma and beta, as a share of the other parameters'.

    A calibrated layer has them in the features' own unit. In features a tenth as large their gradients are ten times as
    large, and the same step is ten times as long by comparison: without this they would be lost at once where features
    are small, as in a VGG without batch norm.

    Args:
        var: of each channel for the clean images.
    """
    return min(1.0, float(var.mean()) / SMALL**2)
