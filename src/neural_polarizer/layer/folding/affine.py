"""The polarizer as an affine map, and how layers take such a map over."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from neural_polarizer.layer.polarizer import Norm, Polarizer
from neural_polarizer.models.adapted import add_bias, pointwise, square_linear

Changes = Mapping[nn.Module, str]
"""The layers that are no longer of the architecture's form, with the kind of ``models.adapted``."""


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``x -> mix x + shift`` of the channels at every place, in float64 on the CPU."""

    mix: Float64[Tensor, "c c"]
    shift: Float64[Tensor, " c"]

    @classmethod
    def of(cls, polarizer: Polarizer) -> "Affine":
        """What ``polarizer`` does in evaluation mode."""
        mix = double(polarizer.mix.weight).flatten(1)
        return cls(mix, torch.zeros(len(mix)).double()).then(polarizer.norm)

    def then(self, norm: Norm) -> "Affine":
        """This map and ``norm`` behind it."""
        scale, shift = scale_and_shift(norm)
        return Affine(scale[:, None] * self.mix, scale * self.shift + shift)


def as_conv(affine: Affine, like: Tensor) -> nn.Conv2d:
    """``affine`` as a 1x1 convolution with bias."""
    conv = pointwise(len(affine.shift), like)
    assert conv.bias is not None
    conv.weight.copy_(affine.mix[:, :, None, None])
    conv.bias.copy_(affine.shift)
    return conv


def as_linear(affine: Affine, like: Tensor) -> nn.Linear:
    """``affine`` as a linear layer with bias."""
    linear = square_linear(len(affine.shift), like)
    linear.weight.copy_(affine.mix)
    linear.bias.copy_(affine.shift)
    return linear


def scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies each channel by and then adds, in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = double(norm.weight) / (double(norm.running_var) + norm.eps).sqrt()
    return scale, double(norm.bias) - scale * double(norm.running_mean)


def set_bias(layer: nn.Conv2d | nn.Linear, bias: Tensor, following: nn.BatchNorm2d | None) -> Changes:
    """Let ``layer`` add ``bias``: by its own, through the mean of the batch norm behind it, or by a new one."""
    if layer.bias is None and following is not None:
        assert following.running_mean is not None
        following.running_mean.copy_(double(following.running_mean) - bias)
        return {}
    if layer.bias is not None:
        layer.bias.copy_(bias)
        return {}
    if not bias.any():
        return {}
    add_bias(layer).copy_(bias)
    return {layer: "bias"}


def bias_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """What ``layer`` adds, in float64 on the CPU; zeros where it has no bias."""
    return torch.zeros(len(layer.weight)).double() if layer.bias is None else double(layer.bias)


def make_bias_of(norm: nn.BatchNorm2d, bias: Tensor) -> None:
    """Let ``norm`` add ``bias`` and do nothing else."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.weight.fill_((1.0 + norm.eps) ** 0.5)
    norm.bias.copy_(bias)


def double(tensor: Tensor) -> Tensor:
    """Its values in float64 on the CPU, apart from its gradient."""
    return tensor.detach().cpu().double()
