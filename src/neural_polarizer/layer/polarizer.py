"""The layer itself (paper section 3.2), and what others that take its place have in common with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError

Structure = Literal["conv-bn", "conv-bn-x2", "linear", "linear-light", "conv", "mlp", "osad", "osdn", "by-class"]
"""What the layer is made of: "conv-bn" is the paper's and ours, the others are in ``structures``, and "by-class", which
holds one of ours for each class, in ``by_class``."""

Norm = nn.BatchNorm1d | nn.BatchNorm2d


class Polarizer(nn.Module):
    """The linear layer g_theta of the paper: a linear map of the channels and batch norm, the identity at first.

    In training mode the batch norm standardises each channel; in evaluation mode the layer is an affine map of the
    channels, the same at every place, and until it has seen data it is the identity up to ``1 / sqrt(1 + eps)``.

    Source: Zhu et al., NeurIPS 2023, section 3.2 and Fig. 2.  Departures: where the channels are the last
    axis, the 1x1 convolution is the same map as a linear layer.
    Shape: ``(n, channels, h, w)``, or ``(n, ..., channels)`` if ``channels_last``, to the same shape.

    Args:
        channels: C, the channels of the features it is put on.
        channels_last: whether they are the last axis, as in token sequences and flat features.
    """

    structure: Structure = "conv-bn"

    def __init__(self, channels: int, *, channels_last: bool = False) -> None:
        super().__init__()
        # Neither draws random numbers.
        self.mix: nn.Conv2d | nn.Linear
        self.norm: Norm
        if channels_last:
            self.mix = nn.utils.skip_init(nn.Linear, channels, channels, bias=False)
            self.norm = nn.BatchNorm1d(channels)
            nn.init.eye_(self.mix.weight)
        else:
            self.mix = nn.utils.skip_init(nn.Conv2d, channels, channels, kernel_size=1, bias=False)
            self.norm = nn.BatchNorm2d(channels)
            nn.init.dirac_(self.mix.weight)

    def forward(self, features: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        if not self.channels_last:
            return self.norm(self.mix(features))
        return self.norm(self.mix(features).flatten(0, -2)).view_as(features)

    @property
    def channels_last(self) -> bool:
        """Whether it mixes the last axis instead of the second."""
        return isinstance(self.mix, nn.Linear)

    @torch.no_grad()
    def calibrate(self, mean: Float[Tensor, " c"], var: Float[Tensor, " c"]) -> None:
        """Take over a channel's statistics and make the layer the exact identity in evaluation mode.

        The running statistics become ``mean`` and ``var``, and ``gamma = sqrt(var + eps)``, ``beta = mean`` undo them.
        Only the norm changes; once the linear map has been trained, no norm can restore the identity, and this is
        refused.
        """
        weight = self.mix.weight.flatten(1)
        if not torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device)):
            raise BadInputError("only a polarizer whose linear map is still the identity can be calibrated")
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(var)
        self.norm.weight.copy_((self.norm.running_var + self.norm.eps).sqrt())
        self.norm.bias.copy_(self.norm.running_mean)

    @property
    def in_feature_units(self) -> Sequence[nn.Parameter]:
        """The parameters that have the unit of the features: those of each ``norm``, and each ``shift``."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if "norm" in name.split(".") or name.endswith("shift")
        ]

    @property
    def inner_norms(self) -> Sequence[Norm]:
        """The batch norms, in their order, whose inputs are not the features that ``calibrate`` knows."""
        return ()


@contextmanager
def shifted(polarizer: Polarizer, shift: Float[Tensor, "n ..."]) -> Iterator[None]:
    """While it lasts, ``shift`` is added to the layer's input: one per image, or one for all."""

    def add(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0] + shift,)

    with polarizer.register_forward_pre_hook(add):
        yield


@contextmanager
def batch_statistics(polarizer: Polarizer, *, follow: bool) -> Iterator[None]:
    """While it lasts, the layer's batch norms standardise each batch by itself; afterwards they do not.

    ``follow`` lets the running statistics move towards those of the batch.
    """
    norms = [module for module in polarizer.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
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
