"""When NPD does what: its epochs, batches and learning rates, whatever computes them."""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from neural_polarizer.defenses.npd_settings import MAX_EPOCHS, MIN_EPOCHS, MIN_STEPS, NeuralPolarizerSettings
from neural_polarizer.rng import stream


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
