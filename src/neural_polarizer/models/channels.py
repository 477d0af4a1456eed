"""By how much each channel of a network can enlarge its input (Zheng et al., ECCV 2022)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neural_polarizer.models.layers import watching


@torch.no_grad()
def convolutions_with_norms(
    model: nn.Module, pixels: Float[Tensor, "n c h w"]
) -> Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each batch norm with weights and running statistics, and the convolution that ran last before it.

    ``model`` is in evaluation mode, ``pixels`` are anything that it can see.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)}
    order: list[nn.Module] = []

    def note(name: str, _inputs: tuple[Any, ...], _output: Any) -> None:
        order.append(layers[name])

    with watching(model, layers, note):
        model(pixels)
    found: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    last: nn.Conv2d | None = None
    for layer in order:
        if isinstance(layer, nn.Conv2d):
            last = layer
        elif (
            isinstance(layer, nn.BatchNorm2d)
            and last is not None
            and last.out_channels == layer.num_features
            and layer.affine
            and layer.running_var is not None
        ):
            found.setdefault(layer, last)
    return [(convolution, norm) for norm, convolution in found.items()]


@torch.no_grad()
def lipschitz_bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Float[Tensor, " k"]:
    """``|W_c| |gamma_c| / sigma_c`` of each output channel, with the spectral norm of ``W_c`` (inputs x positions)."""
    assert norm.running_var is not None
    kernels = convolution.weight.flatten(2).float()
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return torch.linalg.matrix_norm(kernels, ord=2) * scale


def outliers(bounds: Float[Tensor, " k"], deviations: float) -> Bool[Tensor, " k"]:
    """True where a bound lies more than so many standard deviations above the layer's mean."""
    if len(bounds) < 2:
        return torch.zeros_like(bounds, dtype=torch.bool)
    return bounds > bounds.mean() + deviations * bounds.std()
