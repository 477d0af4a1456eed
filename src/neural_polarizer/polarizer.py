"""The layer itself (paper section 3.2), and what others that take its place have in common with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError

Structure = Literal["conv-bn", "conv-bn-x2", "linear", "linear-light", "conv", "mlp", "osad", "osdn"]
"""What the layer is made of: "conv-bn" is the paper's and ours, the others are in ``structures``."""


class Polarizer(nn.Module):
    """The linear layer g_theta of the paper: a 1x1 convolution and batch norm that start out as the identity.

    In training mode the batch norm standardises each channel; in evaluation mode the layer is an affine map per
    pixel, and until it has seen data it is the identity up to ``1 / sqrt(1 + eps)``.

    Source: Zhu et al., NeurIPS 2023, section 3.2 and Fig. 2; spec 3.1.  Departures: none.
    Shape: ``(n, channels, h, w)`` to the same shape.

    Args:
        channels: C, the channels of the feature map it is put on.
    """

    structure: Structure = "conv-bn"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.utils.skip_init(nn.Conv2d, channels, channels, kernel_size=1, bias=False)  # draws nothing
        self.norm = nn.BatchNorm2d(channels)
        nn.init.dirac_(self.mix.weight)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.norm(self.mix(features))

    @torch.no_grad()
    def calibrate(self, mean: Float[Tensor, " c"], var: Float[Tensor, " c"]) -> None:
        """Take over a channel's statistics and make the layer the exact identity in evaluation mode.

        The running statistics become ``mean`` and ``var``, and ``gamma = sqrt(var + eps)``, ``beta = mean`` undo
        them (spec 3.4). Only the norm changes.

        Raises:
            BadInputError: the convolution has been trained already, so no norm can restore the identity.
        """
        weight = self.mix.weight[:, :, 0, 0]
        if not torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device)):
            raise BadInputError("only a polarizer whose convolution is still the identity can be calibrated")
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(var)
        self.norm.weight.copy_((self.norm.running_var + self.norm.eps).sqrt())
        self.norm.bias.copy_(self.norm.running_mean)

    @property
    def inner_norms(self) -> Sequence[nn.BatchNorm2d]:
        """The batch norms, in their order, whose inputs are not the features that ``calibrate`` knows."""
        return ()


@contextmanager
def shifted(polarizer: Polarizer, shift: Float[Tensor, "n c h w"]) -> Iterator[None]:
    """While it lasts, what enters the layer is moved by ``shift``, in units of each image's own norm there."""

    def add(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        length = args[0].detach().float().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return (args[0] + length * shift,)

    handle = polarizer.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def batch_statistics(polarizer: Polarizer, *, follow: bool) -> Iterator[None]:
    """While it lasts, the layer's batch norms standardise each batch by itself; afterwards they do not.

    ``follow`` lets the running statistics move towards those of the batch.
    """
    norms = [module for module in polarizer.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = norm.momentum if follow else 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
