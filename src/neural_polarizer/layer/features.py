"""What a layer inside a network reads: the layout of the values, and where their channels are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC", "NLC", "NC"]
"""Feature maps with the channels in front (most networks) or last (Swin), token sequences (ViT), flat features."""

_MAPS = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout2d,
)


@dataclass(frozen=True)
class Features:
    """The values at a place in a network."""

    shape: tuple[int, ...]  # of one image, without the batch: ``(c, h, w)``, ``(h, w, c)``, ``(l, c)`` or ``(c,)``
    layout: Layout  # which of these

    @property
    def channels(self) -> int:
        """C, the number of values that a polarizer mixes."""
        return self.shape[0] if self.layout == "NCHW" else self.shape[-1]

    @property
    def places(self) -> tuple[int, ...]:
        """The axes of ``shape`` that are pixels or tokens; none for flat features."""
        return {"NCHW": (1, 2), "NHWC": (0, 1), "NLC": (0,), "NC": ()}[self.layout]

    @property
    def positions(self) -> int:
        """Pixels or tokens, each of which a polarizer maps alike."""
        return math.prod(self.shape) // self.channels


def features_of(value: Any, neighbours: Iterable[nn.Module]) -> Features | None:
    """What ``value``, the batch first, is, by its shape and by the layers that give or read it; None if unusable."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or 0 in value.shape[1:]:
        return None
    shape = tuple(value.shape[1:])
    if value.ndim == 2:
        return Features(shape, "NC")
    axes = {axis for module in neighbours for axis in _axes(module, shape)}
    if value.ndim == 4:
        last = axes == {-1} or (not axes and shape[0] == shape[1] != shape[2])  # as images are mostly square
        return Features(shape, "NHWC" if last else "NCHW")
    if value.ndim == 3 and axes <= {-1}:
        return Features(shape, "NLC")
    return None


def _axes(module: nn.Module, shape: Sequence[int]) -> Sequence[int]:
    """The axis that ``module`` takes for that of the channels, if it tells one: 1 or the last."""
    if isinstance(module, (*_MAPS, nn.Conv1d, nn.BatchNorm1d)) or (
        isinstance(module, nn.Flatten) and module.start_dim > 1
    ):
        return (1,)
    if isinstance(module, nn.Linear):
        return (-1,)
    if isinstance(module, nn.LayerNorm):
        # Networks with the channels in front have norms of this class that turn the axes themselves.
        size = module.normalized_shape[-1]
        return (-1,) if shape[-1] == size and not (shape[0] == size and type(module) is not nn.LayerNorm) else (1,)
    return ()
