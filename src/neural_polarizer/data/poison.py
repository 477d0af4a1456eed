"""Which images an attack changes, and the frozen test set that shows whether it works (spec 1.2)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.parquet import read_column
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream

LabelRule = Literal["all-to-one", "all-to-all"]


@runtime_checkable
class Trigger(Protocol):
    """What turns a clean image into a triggered one, and its label into the attacker's.

    ``stamp`` is pure and works on uint8 pixels, so that a triggered image is exactly what a file would hold.
    """

    def stamp(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]: ...

    def relabel(self, labels: Int64[Tensor, " n"], num_classes: int) -> Int64[Tensor, " n"]: ...


@dataclass(frozen=True, eq=False)
class TriggeredSet:
    """Triggered test images: ``images.labels`` are the poison labels, ``true_labels`` the real ones (int64, (n,))."""

    images: ImageSet
    true_labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def attacked_labels(labels: Int64[Tensor, " n"], num_classes: int, rule: LabelRule, target: int) -> Int64[Tensor, " n"]:
    """The attacker's label for each image: ``target``, or ``(y + 1) mod K`` for all-to-all."""
    if rule == "all-to-all":
        return (labels + 1) % num_classes
    return torch.full_like(labels, target)


def poison(
    train: ImageSet, trigger: Trigger, *, rate: float, seed: int, only: int | None = None
) -> tuple[ImageSet, Int64[Tensor, " m"]]:
    """Stamp and relabel ``round(rate * n)`` images chosen uniformly from all classes, the target's included.

    Args:
        train: all n training images.
        trigger: stamps and relabels.
        rate: share of n.
        seed: fixes the choice.
        only: the class to choose from, or as many as it has; None is all of them.

    Returns:
        The poisoned training set and the sorted indices of the poisoned images.
    """
    count = round(rate * len(train))
    candidates = torch.arange(len(train)) if only is None else (train.labels == only).nonzero().flatten()
    order = torch.randperm(len(candidates), generator=stream(seed, "poison"))
    chosen = candidates[order[:count]].sort().values
    images, labels = train.images.clone(), train.labels.clone()
    images[chosen] = trigger.stamp(train.images[chosen])
    labels[chosen] = trigger.relabel(train.labels[chosen], train.num_classes)
    return ImageSet(images, labels, train.classes, train.source), chosen


def triggered_test(test: ImageSet, trigger: Trigger) -> TriggeredSet:
    """All test images whose label the attack changes, triggered, in the order of the test set."""
    poisoned = trigger.relabel(test.labels, test.num_classes)
    changed = poisoned != test.labels
    images = trigger.stamp(test.images[changed])
    return TriggeredSet(
        ImageSet(images, poisoned[changed], test.classes, test.source), true_labels=test.labels[changed]
    )


def read_triggered(path: Path, *, size: tuple[int, int] | None, num_classes: int) -> TriggeredSet:
    """A triggered test set from ``triggered.parquet`` (``image``, ``label`` = poison label, ``true_label``).

    Raises:
        BadInputError: the file is missing, damaged, of another schema, or has labels out of range.
    """
    images = read_images(str(path), size=size, num_classes=num_classes)
    true_labels = read_column(path, "true_label")
    if len(true_labels) and not 0 <= int(true_labels.min()) <= int(true_labels.max()) < num_classes:
        raise BadInputError(f"{path}: column true_label must lie in 0..{num_classes - 1}")
    return TriggeredSet(images, true_labels)
