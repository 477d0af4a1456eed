"""Which images an attack changes, and the frozen test set that shows whether it works (spec 1.2)."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from neural_polarizer.data.images import ImageSet
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


def attacked_labels(
    labels: Int64[Tensor, " n"], num_classes: int, rule: LabelRule, target: int
) -> Int64[Tensor, " n"]:
    """The attacker's label for each image: ``target``, or ``(y + 1) mod K`` for all-to-all."""
    if rule == "all-to-all":
        return (labels + 1) % num_classes
    return torch.full_like(labels, target)


def poison(
    train: ImageSet, trigger: Trigger, *, rate: float, seed: int
) -> tuple[ImageSet, Int64[Tensor, " m"]]:
    """Stamp and relabel ``round(rate * n)`` images chosen uniformly from all classes, the target's included.

    Returns:
        The poisoned training set and the sorted indices of the poisoned images.
    """
    count = round(rate * len(train))
    chosen = torch.randperm(len(train), generator=stream(seed, "poison"))[:count].sort().values
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
