"""Which images an attack changes, and the frozen test set that shows whether it works."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from neural_polarizer.data.classes import ClassNames, numbered
from neural_polarizer.data.columnar import parquet_rows
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.rows import TRUE_LABEL, attacked_note
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import user_path
from neural_polarizer.rng import stream

LabelRule = Literal["all-to-one", "all-to-all", "source-specific", "multi-target"]
PoisonLabel = int | Literal["next"]
"""The attacker's label of a triggered image: a class, or the one next to the image's own."""


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


class Poisoned(NamedTuple):
    """A poisoned training set."""

    images: ImageSet  # all of it
    chosen: Int64[Tensor, " m"]  # sorted indices of the images with a trigger and the attacker's label
    covers: Int64[Tensor, " k"]  # sorted indices of the images with a trigger and their own label


def attacked_labels(
    labels: Int64[Tensor, " n"], num_classes: int, rule: LabelRule, target: int, source: int = 0
) -> Int64[Tensor, " n"]:
    """The attacker's label for each image.

    ``target``; ``(y + 1) mod K`` for "all-to-all"; for "source-specific" ``target`` in the class ``source`` and y in
    all others.
    """
    if rule == "all-to-all":
        return (labels + 1) % num_classes
    if rule == "source-specific":
        return torch.where(labels == source, target, labels)
    return torch.full_like(labels, target)


def chosen_rows(
    labels: Int64[Tensor, " n"], *, rate: float, seed: int, only: int | None = None, most: float = 1.0
) -> Int64[Tensor, " m"]:
    """Sorted indices of the images that ``poison`` relabels: ``round(rate * n)``, chosen uniformly.

    With ``only``, all are of that class, and no more than the share ``most`` of it.
    """
    count = round(rate * len(labels))
    candidates = torch.arange(len(labels)) if only is None else (labels == only).nonzero().flatten()
    order = torch.randperm(len(candidates), generator=stream(seed, "poison"))
    if only is not None:
        count = min(count, int(most * len(candidates)))
    return candidates[order[:count]].sort().values


def poison(
    train: ImageSet,
    trigger: Trigger | Sequence[Trigger],
    *,
    rate: float,
    seed: int,
    only: int | None = None,
    most: float = 1.0,
    cover_ratio: float = 0.0,
) -> Poisoned:
    """Stamp and relabel the images of ``chosen_rows``, by default from all classes, the target's included.

    Of several triggers, each takes its turn. ``cover_ratio`` is how many other images, of other classes than ``only``,
    are stamped and keep their label, for each one that is relabelled.
    """
    chosen = chosen_rows(train.labels, rate=rate, seed=seed, only=only, most=most)
    free = torch.ones(len(train), dtype=torch.bool) if only is None else train.labels != only
    free[chosen] = False
    others = free.nonzero().flatten()
    order = torch.randperm(len(others), generator=stream(seed, "cover"))
    covers = others[order[: round(cover_ratio * len(chosen))]].sort().values
    images, labels = train.images.clone(), train.labels.clone()
    several = [trigger] if isinstance(trigger, Trigger) else list(trigger)
    for turn, each in enumerate(several):
        mine = chosen[turn :: len(several)]
        rows = torch.cat([mine, covers[turn :: len(several)]])
        images[rows] = each.stamp(train.images[rows])
        labels[mine] = each.relabel(train.labels[mine], train.num_classes)
    return Poisoned(ImageSet(images, labels, train.classes, train.source), chosen, covers)


def triggered_test(test: ImageSet, trigger: Trigger | Sequence[Trigger]) -> TriggeredSet:
    """All test images whose label the attack changes, triggered, in the order of the test set.

    Of several triggers, each takes its turn.
    """
    several = [trigger] if isinstance(trigger, Trigger) else list(trigger)
    images, labels = test.images.clone(), test.labels.clone()
    for turn, each in enumerate(several):
        rows = torch.arange(turn, len(test), len(several))
        labels[rows] = each.relabel(test.labels[rows], test.num_classes)
        rows = rows[labels[rows] != test.labels[rows]]
        images[rows] = each.stamp(test.images[rows])
    changed = labels != test.labels
    return TriggeredSet(
        ImageSet(images[changed], labels[changed], test.classes, test.source), true_labels=test.labels[changed]
    )


def read_triggered(
    path: Path,
    *,
    size: tuple[int, int] | None,
    num_classes: int | None,
    classes: ClassNames | None = None,
    poison_label: PoisonLabel | None = None,
) -> TriggeredSet:
    """A triggered test set.

    Args:
        path: ``triggered.parquet`` (``image``, ``label`` = poison label, ``true_label``), or the folder of an attack.
            With a ``poison_label``, any folder or file of triggered images under their true labels, such as
            BackdoorBench's ``bd_test_dataset``.
        size: height and width to resize to.
        num_classes: K; None takes the file's own.
        classes: the names of the model's classes.
        poison_label: the attacker's class, or "next" for all-to-all.

    Raises:
        BadInputError: the file is missing, damaged, of another schema, or has labels out of range.
    """
    path = user_path(path)
    told = "triggered images are a parquet file with the columns image, label (the attacker's) and true_label"
    if path.is_dir() and (path / "triggered.parquet").is_file():
        path = path / "triggered.parquet"
    if path.is_dir() and poison_label is None:
        raise BadInputError(
            f"{path}: {told}; for a folder of them by true class, as BackdoorBench's bd_test_dataset, say the "
            "attacker's class with --poison-label (next for all-to-all), or in Python make a TriggeredSet of them"
        )
    images = read_images(str(path), size=size, num_classes=num_classes, classes=classes)
    try:
        rows = parquet_rows([path], (TRUE_LABEL,))
    except BadInputError as error:
        if poison_label is not None:
            return _attacked(images, poison_label)
        raise BadInputError(f"{error}; {told}, or give --poison-label where label is the true one") from None
    if poison_label is not None:
        raise BadInputError(f"{path}: has the attacker's labels itself, beside true_label; leave --poison-label out")
    where = f"{path}: column true_label"
    found = numbered(rows.labels, rows.classes, known=classes, num_classes=num_classes, source=where)
    notes = tuple(note for note in images.notes if note != attacked_note(path))  # as it should be
    return TriggeredSet(replace(images, notes=notes), torch.from_numpy(found.labels.copy()))


def _attacked(images: ImageSet, poison_label: PoisonLabel) -> TriggeredSet:
    """Triggered images under their true labels, with the attacker's."""
    count = images.num_classes
    if poison_label == "next":
        labels = attacked_labels(images.labels, count, "all-to-all", 0)
        return TriggeredSet(replace(images, labels=labels), images.labels)
    if not 0 <= poison_label < count:
        raise BadInputError(f"the poison label must be next or lie in 0..{count - 1}, got {poison_label}")
    labels = attacked_labels(images.labels, count, "all-to-one", poison_label)
    return TriggeredSet(replace(images, labels=labels), images.labels)
