"""PyTorch data sets and loaders of (image, label) as an image set."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from neural_polarizer.data.images import ImageSet
from neural_polarizer.errors import BadInputError


def as_image_set(data: Any, *, num_classes: int | None = None) -> ImageSet:
    """An ``ImageSet`` from an ``ImageSet``, a data set of (image, label), or a loader of batches of them.

    Float images are rounded to 8 bits.

    Args:
        data: images as PIL pictures, arrays or tensors: uint8, or float in [0, 1]; channels first in tensors.
        num_classes: K, if more than the highest label tells.

    Raises:
        BadInputError: not pairs, images of several sizes, pixels outside [0, 1], or labels out of range.
    """
    if isinstance(data, ImageSet):
        return data
    where = type(data).__name__
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for item in _items(data, where):
        try:
            image, label = item
        except (TypeError, ValueError):
            raise BadInputError(f"{where}: expected (image, label) pairs, got {type(item).__name__}") from None
        batch = isinstance(data, DataLoader)
        images.append(_bytes(image, where) if batch else _bytes(image, where)[None])
        labels.append(torch.as_tensor(label, dtype=torch.int64).reshape(-1))
    if not images:
        raise BadInputError(f"{where}: the data set is empty")
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise BadInputError(f"{where}: images of several shapes ({sizes[:3]}); resize them to one")
    found = torch.cat(labels)
    count = max(num_classes or 0, int(found.max()) + 1)
    return ImageSet(torch.cat(images), found, tuple(str(label) for label in range(count)), where)


def _items(data: Any, where: str) -> Iterable[Any]:
    if isinstance(data, Iterable):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    raise BadInputError(f"{where}: expected an ImageSet, a data set or a loader of (image, label)")


def _bytes(image: Any, where: str) -> Tensor:
    """uint8, channels first; PIL pictures and arrays have the channels last."""
    if not isinstance(image, Tensor):
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        image = torch.from_numpy(array.copy()).movedim(-1, -3)
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise BadInputError(f"{where}: images must be uint8 or float, got {image.dtype}")
    if not (bool(image.isfinite().all()) and float(image.min()) >= 0 and float(image.max()) <= 1):
        raise BadInputError(
            f"{where}: float images must lie in [0, 1]; give them without normalisation and put it into the model: "
            "neural_polarizer.Normalized(model, mean, std)"
        )
    return (image * 255).round().to(torch.uint8)
