"""The polarizer as an affine map, and the changes to single layers that let them do its work."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from neural_polarizer.layer.polarizer import Norm, Polarizer
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.models.adapted import BorderConv2d, add_bias, channel_map, replace_module

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

    def as_layer(self, like: Tensor, *, flat: bool) -> nn.Conv2d | nn.Linear:
        """A 1x1 convolution, or a linear layer if ``flat``, that is this map."""
        layer = channel_map(len(self.shift), like, flat=flat)
        assert layer.bias is not None
        layer.weight.copy_(self.mix.reshape(layer.weight.shape))
        layer.bias.copy_(self.shift)
        return layer


class Edit(ABC):
    """One change, to the modules that it holds."""

    @property
    def exact(self) -> bool:
        """Whether the network stays the same function."""
        return True

    @abstractmethod
    def told(self, names: Mapping[nn.Module, str]) -> str:
        """What it is, in words, before it is done."""

    @abstractmethod
    def apply(self, root: nn.Module, affine: Affine) -> Changes:
        """Do it inside of ``root``."""


@dataclass(frozen=True, eq=False)
class Behind(Edit):
    """The polarizer behind a convolution or a linear layer: ``A (W * x + c) + b = (A W) * x + (A c + b)``.

    That holds whatever the padding.
    """

    layer: nn.Conv2d | nn.Linear  # its weights change
    norm: nn.BatchNorm2d | None = None  # a batch norm between the two; becomes the identity with a bias
    # A batch norm behind the polarizer, which takes the shift if the layer has no bias.
    following: nn.BatchNorm2d | None = None
    shifted: bool = True  # whether this is the summand that takes b

    def told(self, names: Mapping[nn.Module, str]) -> str:
        return f"into {names[self.layer]}" + (f" and {names[self.norm]}" if self.norm is not None else "")

    def apply(self, root: nn.Module, affine: Affine) -> Changes:  # noqa: ARG002
        layer = self.layer
        weight, bias = double(layer.weight).flatten(1), bias_of(layer)
        if self.norm is not None:
            scale, shift = scale_and_shift(self.norm)
            weight, bias = scale[:, None] * weight, scale * bias + shift
        bias = affine.mix @ bias + (affine.shift if self.shifted else 0.0)
        layer.weight.copy_((affine.mix @ weight).view_as(layer.weight))
        if self.norm is None:
            return set_bias(layer, bias, self.following)
        make_bias_of(self.norm, bias)
        if layer.bias is not None:
            layer.bias.zero_()
        return {}


@dataclass(frozen=True, eq=False)
class ShiftInto(Edit):
    """The b of the polarizer alone, which came through sums and averages, in layers that add a constant anyway."""

    # Batch norms, whose means change, and convolutions and linear layers with a bias; a linear layer may have several
    # columns a channel.
    layers: tuple[nn.BatchNorm2d | nn.Conv2d | nn.Linear, ...]

    def told(self, names: Mapping[nn.Module, str]) -> str:
        return f"its constant into {', '.join(names[layer] for layer in self.layers)}"

    def apply(self, root: nn.Module, affine: Affine) -> Changes:  # noqa: ARG002
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                layer.running_mean.copy_(double(layer.running_mean) - affine.shift)
            else:
                assert layer.bias is not None
                shares = double(layer.weight).flatten(1).unflatten(1, (len(affine.shift), -1)).sum(2)
                layer.bias.copy_(double(layer.bias) + shares @ affine.shift)
        return {}


@dataclass(frozen=True, eq=False)
class Into(Edit):
    """The polarizer in front of a convolution or a linear layer: ``W * (A x + b) = (W A) * x + W * b``.

    ``W * b`` is one number a channel, except where zeros are padded: there the taps outside must not count. A linear
    layer behind an average or the like has several columns a channel, as a convolution has its taps.
    """

    layer: nn.Conv2d | nn.Linear  # its weights change
    # A batch norm behind it, which takes the constant if the layer has no bias.
    following: nn.BatchNorm2d | None = None
    border: bool = False  # whether to keep the taps' shares of the constant apart, exact on a padded border too

    @property
    def exact(self) -> bool:
        return self.border or not pads_zeros(self.layer)

    def told(self, names: Mapping[nn.Module, str]) -> str:
        remark = " with a term for its zero padding" if self.border else ", exact in the interior only"
        return f"into {names[self.layer]}{remark if pads_zeros(self.layer) else ''}"

    def apply(self, root: nn.Module, affine: Affine) -> Changes:
        layer = self.layer
        taps = double(layer.weight).reshape(len(layer.weight), len(affine.shift), -1)
        shares = torch.einsum("ois,i->os", taps, affine.shift)
        layer.weight.copy_(torch.einsum("ois,ij->ojs", taps, affine.mix).reshape(layer.weight.shape))
        if not (self.border and pads_zeros(layer)):
            return set_bias(layer, bias_of(layer) + shares.sum(1), self.following)
        conv = BorderConv2d(layer)
        conv.border.copy_(shares.view_as(conv.border))
        replace_module(root, layer, conv.requires_grad_(layer.weight.requires_grad))
        return {conv: "border"}


@dataclass(frozen=True, eq=False)
class InsteadOfNorm(Edit):
    """The polarizer in front of a batch norm: both are one 1x1 convolution with bias."""

    norm: nn.BatchNorm2d

    def told(self, names: Mapping[nn.Module, str]) -> str:
        return f"with {names[self.norm]} into one 1x1 convolution"

    def apply(self, root: nn.Module, affine: Affine) -> Changes:
        conv = affine.then(self.norm).as_layer(self.norm.weight, flat=False)
        replace_module(root, self.norm, conv)
        return {conv: "pointwise"}


@dataclass(frozen=True, eq=False)
class InPlace(Edit):
    """The polarizer's linear map and batch norm as one layer with bias, where they are."""

    wrapped: PolarizedModule  # holds the polarizer
    channels_last: bool  # whether that layer is a linear one instead of a 1x1 convolution

    def told(self, names: Mapping[nn.Module, str]) -> str:  # noqa: ARG002
        return f"into one {'linear layer' if self.channels_last else '1x1 convolution'} at its own site"

    def apply(self, root: nn.Module, affine: Affine) -> Changes:  # noqa: ARG002
        like = next(self.wrapped.polarizer.parameters())
        self.wrapped.polarizer = affine.as_layer(like, flat=self.channels_last)
        return {}


def pads_zeros(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it reads zeros outside the image; reflected or repeated pixels pass through the polarizer."""
    if not isinstance(layer, nn.Conv2d):
        return False
    padding = layer.padding if isinstance(layer.padding, str) else any(layer.padding)
    return layer.padding_mode == "zeros" and padding not in (False, "valid")


def scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies each channel by and then adds, in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = double(norm.weight) / (double(norm.running_var) + norm.eps).sqrt()
    return scale, double(norm.bias) - scale * double(norm.running_mean)


def set_bias(layer: nn.Conv2d | nn.Linear, bias: Tensor, following: nn.BatchNorm2d | None = None) -> Changes:
    """Let ``layer`` add ``bias``: by its own, through the mean of the batch norm behind it, or by a new one."""
    if layer.bias is not None:
        layer.bias.copy_(bias)
    elif following is not None:
        assert following.running_mean is not None
        following.running_mean.copy_(double(following.running_mean) - bias)
    elif bias.any():
        add_bias(layer).copy_(bias)
        return {layer: "bias"}
    return {}


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
