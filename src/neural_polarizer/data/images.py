"""The one form in which images travel through this package."""

import hashlib
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from neural_polarizer.errors import BadInputError

ByteImages: TypeAlias = UInt8[Tensor, "n c h w"]
"""Images of 8 bits, 0 to 255: uint8 ``(n, c, h, w)``."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in memory; never changed after construction.

    Shape: ``images`` is uint8 ``(n, 3, h, w)`` in 0..255, ``labels`` is int64 ``(n,)`` in 0..K-1.

    Args:
        images: the pixels.
        labels: one class index an image.
        classes: the K class names, in the order of the indices.
        source: where the images come from, for the record.
        notes: what the user should know of how they were read.
        own: the K names that the data give the classes, where these are others.

    Raises:
        BadInputError: shapes, dtypes or label values do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str = "the images in memory"
    notes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor) or self.images.dtype != torch.uint8 or self.images.ndim != 4:
            wanted = "a tensor, uint8 of shape (n, c, h, w)"
            raise BadInputError(f"{self.source}: images must be {wanted}, got {_form(self.images)}")
        known = isinstance(self.labels, Tensor) and self.labels.dtype == torch.int64
        if not known or self.labels.shape != self.images.shape[:1]:
            wanted = f"a tensor, int64 of shape ({len(self.images)},)"
            raise BadInputError(f"{self.source}: labels must be {wanted}, got {_form(self.labels)}")
        if not isinstance(self.classes, (tuple, list)):
            raise BadInputError(f"{self.source}: classes must be the names of the classes, got {self.classes!r}")
        low, high = map(int, self.labels.aminmax()) if len(self.labels) else (0, -1)
        if low < 0 or high >= len(self.classes):
            raise BadInputError(f"{self.source}: labels must lie in 0..{len(self.classes) - 1}, found {low}..{high}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    def select(self, indices: Tensor) -> "ImageSet":
        """The images at ``indices`` (int64 or bool), in that order, as a new set."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def sha256(self) -> str:
        """A hash of pixels and labels, to tell whether two runs saw the same data."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def _form(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def to_pixels(images: ByteImages) -> Float[Tensor, "n c h w"]:
    """Float32 pixels in [0, 1] from uint8 ones, on the same device."""
    return images.to(torch.float32).div_(255)


def to_bytes(pixels: Float[Tensor, "n c h w"]) -> ByteImages:
    """The nearest uint8 pixels of such in [0, 1]."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def class_counts(images: ImageSet) -> Int64[Tensor, " k"]:
    """How many images each class has."""
    return torch.bincount(images.labels, minlength=images.num_classes)


def count_shared(ours: ImageSet, others: ImageSet) -> int:
    """How many images of ``ours`` are in ``others``, too, pixel by pixel; labels do not count."""
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(ours))


def _digests(images: ImageSet) -> list[bytes]:
    rows = images.images.cpu().contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
