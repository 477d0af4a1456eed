"""Normalisation as a part of the model, so that pixels in [0, 1] are the only input there is."""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError

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
"""Mean and standard deviation of each data set's pixels (spec 1.1)."""


def normalisation_named(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of a name of ``PROFILES``, or of MEAN/STD such as ``0.5,0.5,0.5/0.25,0.25,0.25``.

    One number alone stands for all three channels.

    Raises:
        BadInputError: neither, or numbers that are not finite, or a deviation that is not positive.
    """
    if text in PROFILES:
        return PROFILES[text]
    mean, slash, std = text.partition("/")
    try:
        values = tuple(_channels(part) for part in (mean, std)) if slash else ()
    except ValueError:
        values = ()
    if len(values) != 2 or min(values[1]) <= 0:
        raise BadInputError(
            f"unknown profile {text!r}: choose one of {', '.join(PROFILES)}, or give MEAN/STD such as "
            "0.5,0.5,0.5/0.25,0.25,0.25"
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

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise BadInputError(f"normalisation needs one mean and one positive std a channel, got {mean} and {std}")
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        own = {f"{prefix}{name}": value for name, value in (("mean", self.mean), ("std", self.std))}
        super()._load_from_state_dict({**own, **state_dict}, prefix, *others)

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Tensor:
        return self.network((pixels - self.mean) / self.std)
