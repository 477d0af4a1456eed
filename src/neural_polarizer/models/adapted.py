"""Layers that a folded network has and its architecture has not, and how to put them into a network of that kind."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.layers import shape_of


class BorderConv2d(nn.Conv2d):
    """A zero-padded convolution of ``x + shift`` that is given ``x``: padded pixels get no shift, as they are zero.

    Each tap adds its share of the shift where it lies inside the image. ``border`` holds these shares; convolving a map
    of ones with them counts the taps that are inside, for every image size, stride and dilation. Shape, options and
    values are those of the convolution ``like``.

    Shape: as ``nn.Conv2d``; ``border`` is ``(out_channels, kernel height, kernel width)``.
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


def channel_map(channels: int, like: Tensor, *, flat: bool) -> nn.Conv2d | nn.Linear:
    """A 1x1 convolution, or a linear layer if ``flat``, with bias, without values; of ``like``'s device and dtype."""
    kind, shape = (nn.Linear, (channels, channels)) if flat else (nn.Conv2d, (channels, channels, 1))
    made: nn.Conv2d | nn.Linear = nn.utils.skip_init(kind, *shape, device=like.device, dtype=like.dtype)
    return made.requires_grad_(like.requires_grad)


def adapt(network: nn.Module, name: str, kind: str) -> None:
    """Change the layer ``name`` of ``network`` in place, so that the weights of a folded network fit.

    ``kind`` is "bias" where there was none, "border" for a ``BorderConv2d`` in the place of a convolution, or
    "pointwise" for a 1x1 convolution in that of a batch norm.

    Raises:
        BadInputError: no such layer or kind, or a layer that cannot be changed in this way.
    """
    layer = dict(network.named_modules()).get(name)
    if kind == "bias" and isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is None:
        add_bias(layer)
    elif kind == "border" and type(layer) is nn.Conv2d and layer.groups == 1:
        replace_module(network, layer, BorderConv2d(layer))
    elif kind == "pointwise" and type(layer) is nn.BatchNorm2d:
        replace_module(network, layer, channel_map(layer.num_features, layer.weight, flat=False))
    else:
        raise BadInputError(f"its record of the model is damaged (no change {kind!r} is possible at {name!r})")
