"""Batches and learning rates of defenses that learn a polarizer, whatever library computes them."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.rng import stream


def steps_an_epoch(count: int, batch_size: int) -> int:
    """How many batches ``count`` images make.

    One value per channel is too few for batch statistics: a last image that would be a batch by itself joins the batch
    before.
    """
    steps = math.ceil(count / batch_size)
    return steps - 1 if steps > 1 and count % batch_size == 1 else steps


def batches(count: int, batch_size: int, *, seed: int, phase: str, epoch: int) -> tuple[Int64[Tensor, " b"], ...]:
    """The rows of each batch of one epoch, on the CPU: all ``count`` images, shuffled by ``(seed, phase, epoch)``."""
    order = torch.randperm(count, generator=stream(seed, phase, epoch))
    return order.tensor_split([batch_size * step for step in range(1, steps_an_epoch(count, batch_size))])


def cosine(done: int, total: int) -> float:
    """The share of the learning rate for the step after ``done`` of ``total`` ones: from 1 down towards 0."""
    return 0.5 * (1 + math.cos(math.pi * done / total))


def feature_units_rate(var: Float[Tensor, " c"], small: float) -> float:
    """The learning rate of gamma and beta, as a share of that of the other parameters, from each channel's variance.

    A calibrated layer has them in the unit of the features. In features a tenth as large their gradients are ten times
    as large, and the same step is ten times as long by comparison: without this share they would be lost at once where
    features are small, as in a VGG without batch norm. It is below 1 for a standard deviation below ``small``.
    """
    return min(1.0, float(var.mean()) / small**2)
