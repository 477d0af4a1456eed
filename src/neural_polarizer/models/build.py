"""From an architecture's name to a network, with the sizes that a checkpoint itself tells."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.preact_resnet import PreActResNet18

FORMS = "preactresnet18, vgg19_bn, torchvision:NAME or timm:NAME"


def build(architecture: str, num_classes: int, *, width: int | None = None) -> nn.Module:
    """A randomly initialised network; weights are never fetched.

    Args:
        architecture: ``preactresnet18``, ``vgg19_bn``, ``torchvision:NAME`` or ``timm:NAME``.
        num_classes: K, number of logits.
        width: channels of the first stage of ``preactresnet18`` (64 if None); no other network has one.

    Raises:
        BadInputError: unknown name, impossible size, or the library with that network is not installed.
    """
    if num_classes < 2:
        raise BadInputError(f"a classifier needs at least 2 classes, got {num_classes}")
    if width is not None and (width < 1 or architecture != "preactresnet18"):
        raise BadInputError(f"width {width} for {architecture}: only preactresnet18 has a width, of at least 1")
    library, _, name = architecture.rpartition(":")
    if architecture == "preactresnet18":
        return PreActResNet18(num_classes, width or 64)
    if architecture == "vgg19_bn":
        library, name = "torchvision", "vgg19_bn"
    if library == "torchvision":
        return _torchvision(name, num_classes)
    if library == "timm":
        return _timm(name, num_classes)
    raise BadInputError(f"unknown architecture {architecture!r}: expected {FORMS}")


def _torchvision(name: str, num_classes: int) -> nn.Module:
    try:
        import torchvision
    except ImportError:
        raise BadInputError("torchvision is not installed: pip install 'neural-polarizer[zoo]'") from None
    if name not in torchvision.models.list_models():
        raise BadInputError(f"torchvision has no model {name!r}; see torchvision.models.list_models()")
    options: dict[str, Any] = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if options:
        options["init_weights"] = True
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def _timm(name: str, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise BadInputError("timm is not installed: pip install 'neural-polarizer[zoo]'") from None
    # Names with a scheme ("hf-hub:...") would make timm fetch files.
    if not re.fullmatch(r"[a-z0-9_.]+", name) or not timm.is_model(name):
        raise BadInputError(f"timm has no model {name!r}; see timm.list_models()")
    return timm.create_model(name, pretrained=False, num_classes=num_classes)


def sizes_in(architecture: str, tensors: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """(number of classes, width) that the tensors of a checkpoint tell; None for what they do not tell."""
    width = None
    if architecture == "preactresnet18":
        stem = tensors.get("conv1.weight")
        width = int(stem.shape[0]) if stem is not None and stem.ndim == 4 and stem.shape[0] > 0 else None
    with torch.device("meta"):
        skeleton = build(architecture, 2)
    heads = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]
    head = tensors.get(f"{heads[-1]}.weight") if heads else None
    return (int(head.shape[0]) if head is not None and head.ndim == 2 else None), width
