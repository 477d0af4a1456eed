"""Normalisation as a part of the model, so that pixels in [0, 1] are the only input there is."""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError, refusing
from neural_polarizer.models.layers import shape_of

PROFILES = MappingProxyType(
    {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }
)
"""Mean and standard deviation of each data set's pixels."""


def normalisation_named(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of a name of ``PROFILES``, or of MEAN/STD such as ``0.5,0.5,0.5/0.25,0.25,0.25``.

    One number alone stands for all three channels.

    Raises:
        BadInputError: neither, or numbers that are not finite, or a deviation that is not positive, or a mean that no
            pixels in [0, 1] have.
    """
    if text in PROFILES:
        return PROFILES[text]
    mean, slash, std = text.partition("/")
    try:
        values = tuple(_channels(part) for part in (mean, std)) if slash else ()
    except ValueError:
        values = ()
    if len(values) != 2 or min(values[1]) <= 0:
        bare = re.sub(r"[\W_]", "", text.lower())
        meant = next((f"did you mean {name}? Else " for name in PROFILES if name.replace("_", "") == bare), "")
        raise BadInputError(
            f"unknown profile {text!r}: {meant}choose one of {', '.join(PROFILES)}, or give MEAN/STD such as "
            "0.5,0.5,0.5/0.25,0.25,0.25"
        )
    if max(map(abs, values[0])) > 1:
        scaled = "/".join(",".join(f"{value / 255:.4g}" for value in part) for part in values)
        raise BadInputError(
            f"profile {text!r}: the mean is that of pixels from 0 to 255, but here they lie in [0, 1]; divide by 255: "
            f"{scaled}"
        )
    return values[0], values[1]


def _channels(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise ValueError(text)
    return values if len(values) == 3 else values * 3


class Normalized(nn.Module):
    """A network behind its normalisation ``n(x) = (x - mean) / std``.

    The statistics are part of the state dict. A state dict without them, as earlier versions wrote it, leaves those of
    the module as they are.

    Shape: float ``(n, 3, h, w)`` in [0, 1] to logits ``(n, k)``.

    Args:
        network: takes normalised images.
        mean: one value a channel, in pixel units of [0, 1].
        std: one positive value a channel, likewise.

    Raises:
        BadInputError: ``mean`` and ``std`` differ in length, or a ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor
    model_record: object | None = None
    """What a file must say to build the network again, where the model was read from one."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        with refusing(
            f"normalisation needs lists, a number for each channel, got {mean} and {std}", TypeError, ValueError
        ):
            mean, std = (list(map(float, each)) for each in (mean, std))
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise BadInputError(f"normalisation needs one mean and one positive std a channel, got {mean} and {std}")
        if max(mean) > 2:  # EfficientNet's, which is offset, is 1.5
            raise BadInputError(f"a mean of {max(mean):g} is not one of pixels in [0, 1]; divide mean and std by 255")
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        own = {f"{prefix}{name}": value for name, value in (("mean", self.mean), ("std", self.std))}
        super()._load_from_state_dict({**own, **state_dict}, prefix, *others)

    def of_three(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of three channels, for each of which a single one stands."""
        mean, std = (tuple(value.flatten().tolist()) for value in (self.mean, self.std))
        return (mean * 3, std * 3) if len(mean) == 1 else (mean, std)

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Any:  # what the network gives, which may be no tensor
        return self.network((pixels - self.mean) / self.std)


class Converted(Normalized):
    """A network of another form behind its normalisation, as one from RGB pixels to logits of at least two classes.

    Shape: float ``(n, 3, h, w)`` in [0, 1] to logits ``(n, k)``.

    Args:
        grey: the network takes one channel, the mean of the three; only the first of ``mean`` and ``std`` count.
        output: key, attribute or index of the logits, where the network gives more than a tensor.
        yes_no: the network gives one logit z, which becomes the two logits (0, z).
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        grey: bool = False,
        output: str | None = None,
        yes_no: bool = False,
    ) -> None:
        super().__init__(network, mean[:1] if grey else mean, std[:1] if grey else std)
        self.grey, self.output, self.yes_no = grey, output, yes_no

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Any:
        if self.grey:
            pixels = pixels.mean(dim=1, keepdim=True)
        found = super().forward(pixels)
        if self.output is not None:
            found = picked(found, self.output)
        if self.yes_no and not isinstance(found, (tuple, list, Mapping)):  # a tracer has no tensors
            logit = found.reshape(-1, 1)
            found = torch.cat((torch.zeros_like(logit), logit), dim=1)
        return found


def bare(model: nn.Module) -> nn.Module:
    """The network alone, where ``model`` is one behind its normalisation."""
    return model.network if isinstance(model, Normalized) else model


def two_logits(network: nn.Module) -> Converted:
    """``network``, which gives one logit z, as one that gives the two logits (0, z); the network is shared.

    The names of its modules, as sites have them, stay.
    """
    if isinstance(network, Normalized):
        mean, std = (value.flatten().tolist() for value in (network.mean, network.std))
        grey, output = (network.grey, network.output) if isinstance(network, Converted) else (False, None)
        both = Converted(network.network, mean, std, yes_no=True, grey=grey, output=output)
        both.model_record = network.model_record
        return both
    return Converted(network, (0.0,), (1.0,), yes_no=True)


def one_logit(model: nn.Module, like: nn.Module) -> nn.Module:
    """What ``two_logits`` made of a network like ``like``, as that network again."""
    if not isinstance(model, Converted):
        return model
    if not isinstance(like, Normalized):
        return model.network
    if isinstance(like, Converted):
        model.yes_no = False
        return model
    mean, std = (value.flatten().tolist() for value in (model.mean, model.std))
    return Normalized(model.network, mean, std)


def picked(found: Any, key: str) -> Any:
    """One part of what a network gives, by key, attribute or index; others are refused, with those that there are."""
    parts = outputs(found)
    if parts is None:  # an object whose attributes tell nothing before they are asked, or while it is traced
        parts = {} if key.startswith("_") or not hasattr(found, key) else {key: getattr(found, key)}
    if isinstance(found, (tuple, list)):  # a namedtuple's by place as well, and the last one as -1
        parts |= {str(place): found[place] for place in range(-len(found), len(found))}
    if key not in parts:
        raise BadInputError(f"the network gives no output {key!r}; it gives {described(found)}")
    return parts[key]


def outputs(found: Any) -> dict[str, Any] | None:
    """The parts of a dict, tuple or list by the text that ``--output`` takes; None for anything else."""
    if isinstance(found, Mapping):
        return {str(key): value for key, value in found.items()}
    if not isinstance(found, (tuple, list)):
        return None
    return {str(name): value for name, value in zip(getattr(found, "_fields", range(len(found))), found, strict=True)}


def described(found: Any) -> str:
    """What a network gives, with shapes."""
    parts = outputs(found)
    if parts is None:
        parts = {name: value for name, value in getattr(found, "__dict__", {}).items() if isinstance(value, Tensor)}
    shapes = [f"{key} ({_shape(value)})" for key, value in parts.items()]
    return f"a {type(found).__name__}" + (f" of {', '.join(shapes)}" if shapes else f" ({_shape(found)})")


def _shape(value: Any) -> str:
    return " x ".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__


def one_channel(network: nn.Module) -> None:
    """Let the first convolution of a network for RGB images take one channel; other networks stay as they are."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and name:
            if module.in_channels != 1:
                network.set_submodule(name, nn.Conv2d(1, module.out_channels, **shape_of(module)))
            return


def channels_taken(network: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """For how many channels the weights of the network's first convolution, by its names, are; None if it has none."""
    first = next(((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d)), None)
    if first is None or first[1].groups != 1:
        return None
    weight = tensors.get(f"{first[0]}.weight")
    return None if weight is None or weight.ndim != 4 else int(weight.shape[1])
