"""The paper's other networks with fewer channels, so that they can be trained without a GPU."""

from collections.abc import Mapping

from torch import nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.adapted import replace_module
from neural_polarizer.models.layers import shape_of

FULL_WIDTHS: Mapping[str, int] = {
    "preactresnet18": 64,
    "vgg19": 64,
    "vgg19_bn": 64,
    "densenet161": 96,
    "inception_v3": 32,
}
"""The networks whose width can be chosen, with the channels of their first convolution as published."""


def thin(network: nn.Module, name: str, width: int) -> nn.Module:
    """Put layers of fewer channels in the place of all layers of a network: each has ``width / full width`` as many.

    Images keep their 3 channels and logits their number. Depth, kernels, strides and the names of the tensors stay.
    Weights are drawn as He et al. (2015) have it; biases are zero.

    ``network``, of 2-D convolutions without groups or dilation, batch norms and linear layers, is on the meta device,
    as its values are of no use; ``name`` is that of the architecture, one of ``FULL_WIDTHS``.

    Raises:
        BadInputError: some layer would not have a whole number of channels.
    """
    full = FULL_WIDTHS[name]

    def scaled(channels: int) -> int:
        if channels * width % full:
            raise BadInputError(
                f"width {width} of {name}: a layer with {channels} channels cannot have {width}/{full} of them; take "
                f"another width, such as {full // 4} or {full // 8}"
            )
        return channels * width // full

    layers = list(network.modules())
    head = [layer for layer in layers if isinstance(layer, nn.Linear)][-1]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            assert (layer.groups, layer.dilation) == (1, (1, 1))
            inputs = layer.in_channels if layer.in_channels == 3 else scaled(layer.in_channels)
            conv = nn.Conv2d(inputs, scaled(layer.out_channels), **shape_of(layer))
            replace_module(network, layer, _drawn(conv, "fan_out"))
        elif isinstance(layer, nn.BatchNorm2d):
            norm = nn.BatchNorm2d(scaled(layer.num_features), layer.eps, layer.momentum)
            replace_module(network, layer, norm)
        elif isinstance(layer, nn.Linear):
            outputs = layer.out_features if layer is head else scaled(layer.out_features)
            replace_module(network, layer, _drawn(nn.Linear(scaled(layer.in_features), outputs), "fan_in"))
    return network


def _drawn(layer: nn.Conv2d | nn.Linear, fan: str) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="relu")  # type: ignore[arg-type]
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
