"""Finding layers, looking at what passes through them and how far it is enlarged, and switching channels off."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the head; a network without a linear layer is refused."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise BadInputError(
            "the network has no linear layer whose inputs could be pruned or chosen as neurons; use another "
            "architecture or method"
        )
    return layers[-1]


def shape_of(conv: nn.Conv2d) -> dict[str, Any]:
    """All that another convolution of its form is made with, but the channels."""
    shape = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return {**shape, "bias": conv.bias is not None}


@contextmanager
def watching(
    model: nn.Module, names: Iterable[str], note: Callable[[str, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Call ``note(name, inputs, output)`` after every run of a named module while the block runs; hooks always go."""
    with ExitStack() as hooks:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(
                lambda _, inputs, output, name=name: note(name, inputs, output)
            )
            hooks.enter_context(hook)
        yield


def inputs_of(model: nn.Module, name: str, pixels: Float[Tensor, "n c h w"]) -> Tensor:
    """What enters the layer called ``name`` when ``model`` sees ``pixels``."""
    seen: list[Tensor] = []
    with watching(model, [name], lambda _name, inputs, _output: seen.append(inputs[0])):
        model(pixels)
    return seen[0]


@torch.no_grad()
def convolutions_with_norms(
    model: nn.Module, pixels: Float[Tensor, "n c h w"]
) -> Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each batch norm with weights and running statistics, and the convolution that ran last before it.

    ``model`` is in evaluation mode, ``pixels`` are anything that it can see.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)}
    order: list[nn.Conv2d | nn.BatchNorm2d] = []
    with watching(model, layers, lambda name, _inputs, _output: order.append(layers[name])):
        model(pixels)
    found: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    last: nn.Conv2d | None = None
    for layer in order:
        if isinstance(layer, nn.Conv2d):
            last = layer
        elif (
            last is not None
            and last.out_channels == layer.num_features
            and layer.affine
            and layer.running_var is not None
        ):
            found.setdefault(layer, last)
    return [(convolution, norm) for norm, convolution in found.items()]


@torch.no_grad()
def lipschitz_bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Float[Tensor, " k"]:
    """``|W_c| |gamma_c| / sigma_c``, by how much each output channel can enlarge its input.

    Source: Zheng et al., ECCV 2022, with the spectral norm of ``W_c`` (inputs x positions).
    """
    assert norm.running_var is not None
    kernels = convolution.weight.flatten(2).float()
    scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return torch.linalg.matrix_norm(kernels, ord=2) * scale


def outliers(bounds: Float[Tensor, " k"], deviations: float) -> Bool[Tensor, " k"]:
    """True where a bound lies more than so many standard deviations above the layer's mean."""
    if len(bounds) < 2:
        return torch.zeros_like(bounds, dtype=torch.bool)
    return bounds > bounds.mean() + deviations * bounds.std()


@torch.no_grad()
def silence(norm: nn.BatchNorm2d, gone: Bool[Tensor, " k"]) -> int:
    """Let ``norm`` give zeros for the channels ``gone``, in place; how many these are."""
    norm.weight[gone] = 0
    norm.bias[gone] = 0
    return int(gone.sum())
