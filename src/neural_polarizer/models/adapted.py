"""Layers that a folded network has and its architecture has not, and how to put them into a network of that kind."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import shape_of


class BorderConv2d(nn.Conv2d):
    """A zero-padded convolution of ``x + shift`` that is given ``x``: padded pixels get no shift, as they are zero.

    Each tap adds its share of the shift where it lies inside the image. ``border`` holds these shares; convolving a
    map of ones with them counts the taps that are inside, for every image size, stride and dilation.

    Shape: as ``nn.Conv2d``; ``border`` is ``(out_channels, kernel height, kernel width)``.

    Args:
        like: the convolution whose shape, options and values it takes over.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            **shape_of(like),
            device="meta",  # draws no random numbers; the values follow
        )
        self.weight, self.bias = like.weight, like.bias
        self.border = nn.Parameter(like.weight.new_zeros(like.out_channels, *like.kernel_size))

    def forward(self, input: Float[Tensor, "n c h w"]) -> Tensor:  # noqa: A002 - the name that nn.Conv2d gives it
        inside = torch.ones_like(input[:1, :1])
        taps = self.border[:, None]
        return super().forward(input) + F.conv2d(inside, taps, None, self.stride, self.padding, self.dilation)


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is inside ``root``: a module can have several names."""
    places = [(parent, name) for parent in root.modules() for name, child in parent._modules.items() if child is old]
    for parent, name in places:
        setattr(parent, name, new)


def add_bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Give a layer that has none a bias of zeros, and return it."""
    weight = layer.weight
    layer.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)
    return layer.bias


def pointwise(channels: int, like: Tensor) -> nn.Conv2d:
    """A 1x1 convolution with bias, of the device and dtype of ``like``, still without values."""
    skipped: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, channels, channels, kernel_size=1, device=like.device, dtype=like.dtype
    )
    return skipped.requires_grad_(like.requires_grad)


def square_linear(channels: int, like: Tensor) -> nn.Linear:
    """A linear layer with bias from as many values to as many, of the device and dtype of ``like``, without values."""
    skipped: nn.Linear = nn.utils.skip_init(nn.Linear, channels, channels, device=like.device, dtype=like.dtype)
    return skipped.requires_grad_(like.requires_grad)


def _bias(_network: nn.Module, module: nn.Module) -> bool:
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or module.bias is not None:
        return False
    add_bias(module)
    return True


def _border(network: nn.Module, module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.groups != 1:
        return False
    replace_module(network, module, BorderConv2d(module))
    return True


def _pointwise(network: nn.Module, module: nn.Module) -> bool:
    if type(module) is not nn.BatchNorm2d:
        return False
    replace_module(network, module, pointwise(module.num_features, module.weight))
    return True


ADAPTATIONS: Mapping[str, Callable[[nn.Module, nn.Module], bool]] = {
    "bias": _bias,
    "border": _border,
    "pointwise": _pointwise,
}
"""By kind: a bias where there was none; a ``BorderConv2d`` for a convolution; a 1x1 convolution for a batch norm."""


def adapt(network: nn.Module, name: str, kind: str) -> None:
    """Change the layer ``name`` of ``network`` in place, so that the weights of a folded network fit.

    Raises:
        BadInputError: no such layer or kind, or a layer that cannot be changed in this way.
    """
    module = dict(network.named_modules()).get(name)
    change = ADAPTATIONS.get(kind)
    if module is None or change is None or not change(network, module):
        raise BadInputError(f"its record of the model is damaged (no change {kind!r} is possible at {name!r})")
