"""From an architecture's name to a network, with the sizes that a checkpoint itself tells."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from neural_polarizer.errors import BadInputError, needing, refusing
from neural_polarizer.models.architecture import FORMS, Architecture
from neural_polarizer.models.definition import Definition, outputs_of
from neural_polarizer.models.hugging_face import build_classifier
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.models.thin import FULL_WIDTHS, thin

MAX_CALLS = 50_000  # of torch's functions while a network is built; the largest of timm need 15,000


class Resize(nn.Module):
    """Images of any size to squares of ``side`` pixels, bilinearly and averaging where they shrink.

    Shape: float ``(n, c, h, w)`` to ``(n, c, side, side)``.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)


def build(
    architecture: str | Definition,
    num_classes: int,
    *,
    width: int | None = None,
    config: str | None = None,
    least: int = 2,
) -> nn.Module:
    """A randomly initialised network; weights are never fetched.

    Options of ``torchvision:`` and ``timm:`` names go to the library, but two are ours: ``resize=N`` resizes images to
    NxN in front of the network, whose names then begin with ``1.`` (as BackdoorBench has it), and ``stem=3`` gives a
    ResNet a 3x3 convolution of stride 1, without max pooling, to begin with (as is usual for images of 32 pixels).

    Args:
        architecture: ``preactresnet18``, ``vgg19``, ``vgg19_bn``, ``densenet161``, ``inception_v3`` (adapted to images
            of 32 pixels), ``torchvision:NAME``, ``timm:NAME``, or ``transformers:CLASS`` with a ``config``; or code of
            the user's own, which a name alone never leads to.
        num_classes: K, number of logits.
        width: channels of the first convolution (None: as published) of one of the first five; the other layers
            have as many more or fewer.
        config: of a ``transformers:CLASS``, from ``models.hugging_face``.
        least: number of logits; 1 lets a yes/no model have one.

    Raises:
        BadInputError: unknown name, impossible size or option, or the library with that network is not installed.
    """
    if num_classes < least:
        raise BadInputError(f"a classifier needs at least 2 classes, got {num_classes}")
    if width is not None and (width < 1 or architecture not in FULL_WIDTHS):
        raise BadInputError(
            f"width {width} for {architecture}: only {', '.join(FULL_WIDTHS)} have a width, of at least 1"
        )
    if isinstance(architecture, Definition):
        return architecture.build(num_classes)
    if architecture == "preactresnet18":
        return PreActResNet18(num_classes, width or FULL_WIDTHS[architecture])
    if width is not None:
        with torch.device("meta"):
            full = build(architecture, num_classes)
        return thin(full, architecture, width)
    return _named(architecture, num_classes, config)


def _named(architecture: str, num_classes: int, config: str | None) -> nn.Module:
    asked = Architecture.parse(architecture)
    if asked.library == "transformers":
        if config is None:
            raise BadInputError(f"architecture {architecture!r}: give the folder with its config.json instead")
        return build_classifier(config, num_classes)
    options = dict(asked.options)
    side = options.pop("resize", None)
    if asked.library == "timm":
        network = _timm(asked, num_classes, options)
    elif asked.library == "torchvision" or asked.name in FULL_WIDTHS:
        network = _torchvision(asked, num_classes, options)
    else:
        raise BadInputError(f"unknown architecture {architecture!r}: expected {FORMS}{_proposal(asked.name)}")
    return network if side is None else nn.Sequential(Resize(side), network)


def _proposal(name: str) -> str:
    """The name that was meant, where there is one that differs in case, dashes or underscores; as a sentence's end."""
    if name.endswith(".py"):
        return f"; name the class in your file, as {name}:NAME"
    alike = _bare(re.sub(r"^(torchvision(\.models)?|timm)[./]", "", name))
    plain = [each for each in FULL_WIDTHS if _bare(each) == alike]
    found = plain or [
        f"{library}:{each}" for library, names in _listed().items() for each in names if _bare(each) == alike
    ]
    return f"; did you mean {' or '.join(found[:4])}?" if found and alike else ""


def _bare(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _listed() -> dict[str, list[str]]:
    """The names of networks, by library that is installed."""
    found: dict[str, list[str]] = {}
    with suppress(ImportError):
        import torchvision

        found["torchvision"] = torchvision.models.list_models(module=torchvision.models)
        import timm

        found["timm"] = timm.list_models()
    return found


def _torchvision(asked: Architecture, num_classes: int, options: dict[str, int]) -> nn.Module:
    with needing("zoo"):
        import torchvision
    if asked == Architecture("", "inception_v3"):
        return _small_inception(torchvision, num_classes)
    if asked.name not in torchvision.models.list_models(module=torchvision.models):
        raise BadInputError(
            f"torchvision has no image classifier {asked.name!r}; see torchvision.models.list_models()"
            f"{_proposal(asked.name)}"
        )
    stem = options.pop("stem", None)
    more = {"aux_logits": False, "init_weights": True} if asked.name in ("googlenet", "inception_v3") else {}
    with _in_one_line(asked):
        network: nn.Module = torchvision.models.get_model(
            asked.name, weights=None, num_classes=num_classes, **more, **options
        )
    if stem is not None:
        _small_stem(network, asked, stem)
    return network


def _small_inception(torchvision: Any, num_classes: int) -> nn.Module:
    """Inception-V3 as torchvision has it, under its names, with a stem that keeps the resolution.

    Source: our own. The first convolution has stride 1 and is padded, so is the second, and both max poolings
    are gone; there is no auxiliary head and no change of normalisation inside. 32x32 images give maps of 32x32 up to
    ``Conv2d_3b_1x1``, 30x30 from ``Conv2d_4a_3x3`` on, 14x14 from ``Mixed_6a`` and 6x6 from ``Mixed_7a`` on.

    Shape: float ``(n, 3, h, w)``, normalised, h and w at least 9, to logits ``(n, num_classes)``.
    """
    more = {"aux_logits": False, "transform_input": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model("inception_v3", weights=None, num_classes=num_classes, **more)
    first, second = network.get_submodule("Conv2d_1a_3x3.conv"), network.get_submodule("Conv2d_2a_3x3.conv")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    first.stride = (1, 1)
    first.padding = second.padding = (1, 1)
    network.maxpool1, network.maxpool2 = nn.Identity(), nn.Identity()
    return network


def _small_stem(network: nn.Module, asked: Architecture, kernel: int) -> None:
    first = getattr(network, "conv1", None)
    if kernel != 3 or not isinstance(first, nn.Conv2d) or not isinstance(getattr(network, "maxpool", None), nn.Module):
        raise BadInputError(f"architecture {str(asked)!r}: stem=3 is the only other stem, and only ResNets have it")
    network.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()


def _timm(asked: Architecture, num_classes: int, options: Mapping[str, int]) -> nn.Module:
    with needing("zoo"):
        import timm
    # Names with a scheme ("hf-hub:...") would make timm fetch files.
    if not re.fullmatch(r"[a-z0-9_.]+", asked.name) or not timm.is_model(asked.name):
        raise BadInputError(f"timm has no model {asked.name!r}; see timm.list_models(){_proposal(asked.name)}")
    with _in_one_line(asked):
        return timm.create_model(asked.name, pretrained=False, num_classes=num_classes, **options)


def _in_one_line(asked: Architecture) -> AbstractContextManager[None]:
    """Tell in one line what a library says of options that it cannot use."""
    said = f"architecture {str(asked)!r}: cannot be built with these options"
    return refusing(said, Exception) if asked.options else nullcontext()


class _Bounded(TorchFunctionMode):
    """Ends a building that has no end: a stranger's record can ask for any number of layers."""

    def __init__(self, *, counts_on_cpu: bool) -> None:
        super().__init__()
        self.left = MAX_CALLS
        self.counts_on_cpu = counts_on_cpu

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise BadInputError("this network would have far too many layers; check the architecture")
        if self.counts_on_cpu and func in (torch.arange, torch.tensor):
            kwargs = {"device": "cpu", **(kwargs or {})}
        return func(*args, **(kwargs or {}))


def skeleton(
    architecture: str | Definition, num_classes: int, *, width: int | None = None, config: str | None = None
) -> nn.Module:
    """What ``build`` returns, with shapes but without values (on the meta device), in bounded time.

    Code of the user's own is run as it is, because not all code works on the meta device.

    Raises:
        BadInputError: as ``build``, or the network has no end.
    """
    if isinstance(architecture, Definition):
        return architecture.build(num_classes)
    widths_are_computed = architecture.startswith("torchvision:regnet")
    with torch.device("meta"), _Bounded(counts_on_cpu=widths_are_computed):
        return build(architecture, num_classes, width=width, config=config)


def sizes_in(
    architecture: str | Definition, tensors: Mapping[str, Tensor], *, config: str | None = None
) -> tuple[int | None, int | None]:
    """(number of classes, width) that the tensors of a checkpoint tell; None for what they do not tell.

    The head is the first tensor whose shape depends on the number of classes, be it linear or a convolution. Code of
    the user's own that takes no number of classes has one, which its answer tells.
    """
    if isinstance(architecture, Definition) and not architecture.takes_num_classes:
        return outputs_of(architecture.build(2)), None
    two, three = (skeleton(architecture, classes, config=config).state_dict() for classes in (2, 3))
    width = _width_in(architecture, tensors, next(iter(two)))
    for name, value in two.items():
        axes = [axis for axis, size in enumerate(value.shape) if size != three[name].shape[axis]]
        if axes and name in tensors and tensors[name].ndim == value.ndim:
            return int(tensors[name].shape[axes[0]]), width
    return None, width


def _width_in(architecture: str | Definition, tensors: Mapping[str, Tensor], first: str) -> int | None:
    stem = tensors.get(first)
    if isinstance(architecture, Definition) or architecture not in FULL_WIDTHS or stem is None or stem.ndim != 4:
        return None
    width = int(stem.shape[0]) or None
    return None if architecture != "preactresnet18" and width == FULL_WIDTHS[architecture] else width
