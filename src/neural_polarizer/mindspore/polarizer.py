"""The layer itself, as a MindSpore cell; ``neural_polarizer.layer.polarizer`` has it for PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
import torch
from jaxtyping import Float
from mindspore import nn
from torch import Tensor

from neural_polarizer.mindspore.tensors import to_mindspore, to_torch


class Polarizer(nn.Cell):
    """A 1x1 convolution and batch norm for C ``channels`` that start out as the identity (paper section 3.2).

    Its parameters are named ``polarizer.mix.*`` and ``polarizer.norm.*``. Shape: ``(n, channels, h, w)`` to the same
    shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        identity = to_mindspore(torch.eye(channels)[:, :, None, None])
        self.mix = nn.Conv2d(channels, channels, 1, pad_mode="valid", has_bias=False, weight_init=identity)
        # MindSpore's momentum is the share of the old statistics: this is PyTorch's 0.1.
        self.norm = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.9)
        self.update_parameters_name("polarizer.")
        self.set_train(False)

    def construct(self, features: ms.Tensor) -> ms.Tensor:
        return self.norm(self.mix(features))

    def calibrate(self, mean: Float[Tensor, " c"], var: Float[Tensor, " c"]) -> None:
        """Take over the statistics of the layer's input: a new layer becomes the exact identity."""
        mean, var = mean.float(), var.float()
        self.norm.moving_mean.set_data(to_mindspore(mean))
        self.norm.moving_variance.set_data(to_mindspore(var))
        self.norm.gamma.set_data(to_mindspore((var + self.norm.eps).sqrt()))
        self.norm.beta.set_data(to_mindspore(mean))


@contextmanager
def batch_statistics(polarizer: Polarizer, *, follow: bool) -> Iterator[None]:
    """While it lasts, the layer standardises each batch by itself; afterwards it does not.

    ``follow`` lets the running statistics move towards those of the batch.
    """
    running = (polarizer.norm.moving_mean, polarizer.norm.moving_variance)
    before = [to_torch(statistic) for statistic in running]
    polarizer.set_train(True)
    try:
        yield
    finally:
        polarizer.set_train(False)
        if not follow:
            for statistic, values in zip(running, before, strict=True):
                statistic.set_data(to_mindspore(values))
