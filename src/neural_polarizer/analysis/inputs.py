"""What the analyses are given: networks, the names of their layers, and images with and without the trigger."""

import torch
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.surgery import PolarizedModule, nearest
from neural_polarizer.models.forms import copied
from neural_polarizer.models.normalize import bare


def frozen_copy(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy of ``model`` on ``device``, in evaluation mode, whose parameters take no gradients."""
    return copied(model).to(device).eval().requires_grad_(False)


def last_convolution(model: nn.Module) -> str:
    """The convolution that a network lists last: ``layer4.1.conv2`` of a PreActResNet18, ``features.34`` of a VGG19.

    Give it the network as it was: an inserted polarizer has a convolution, too. A normalisation around the network
    is not counted in the name.
    """
    network = bare(model)
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise BadInputError("the network has no convolution; name the layer whose feature map is to be looked at")
    return names[-1]


def name_in(model: nn.Module, layer: str) -> str:
    """What ``model`` calls the module ``layer`` of the network as it was before a polarizer was put into it.

    Where the polarizer sits at this very module, the name is that of the two together, whose output is what the rest of
    the network receives in the module's place.
    """
    network = bare(model)
    module, path = network, [] if network is model else ["network"]
    for part in layer.split("."):
        if isinstance(module, PolarizedModule):
            module = module.module
            path.append("module")
        child = module._modules.get(part)
        if child is None:
            names = [name for name, _ in network.named_modules() if name]
            raise BadInputError(f"layer {layer!r}: no such module; {nearest(layer, names)}")
        module = child
        path.append(part)
    return ".".join(path)


def check_pairs(clean: Tensor, triggered: Tensor) -> None:
    """Refuse images that are not the same ones, uint8 ``(n, 3, h, w)``, with and without the trigger."""
    for name, images in (("clean", clean), ("triggered", triggered)):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise BadInputError(
                f"{name} images must be uint8 of shape (n, 3, h, w) with n > 0, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
    if clean.shape != triggered.shape:
        raise BadInputError(
            f"clean and triggered images must be the same ones in the same order, got {tuple(clean.shape)} and "
            f"{tuple(triggered.shape)}; select those clean images that the attack triggers"
        )
    if torch.equal(clean, triggered):
        raise BadInputError("the triggered images equal the clean ones; stamp them first")
