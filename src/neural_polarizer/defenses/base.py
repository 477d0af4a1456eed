"""What a defense receives and what it gives back; what those that insert nothing have in common."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, class_counts, to_pixels
from neural_polarizer.defenses.guard import Guarded
from neural_polarizer.errors import BadInputError
from neural_polarizer.polarizer import Polarizer
from neural_polarizer.suspects import Suspect
from neural_polarizer.train import Progress, silent


@dataclass(frozen=True, eq=False)
class Exhibit:
    """Pictures of something that a defense has found.

    Args:
        title: a heading.
        caption: what the rows show, in a sentence.
        rows: uint8 ``(n, 3, h, w)``, one row of the sheet each.
    """

    title: str
    caption: str
    rows: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Audit:
    """What a defense has found in the model, for people to look at.

    Args:
        summary: in words.
        by_class: one value for each class, by what it is, such as "anomaly_index"; None where there is none.
        exhibits: pictures.
    """

    summary: str
    by_class: Mapping[str, Sequence[float | bool | None]]
    exhibits: Sequence[Exhibit] = ()


@dataclass(frozen=True, eq=False)
class Purified:
    """A purified classifier.

    Args:
        model: a new module; the defended model's own module is untouched. From ``neural_polarizer.purify`` it has that
            model's dtype, device, mode and flags; straight from a defense it is in float32 on the CPU, in evaluation
            mode.
        polarizer: the learned layer inside ``model``, or None for defenses that insert nothing.
        site: where it sits, as ``before:NAME`` or ``after:NAME``.
        history: one record an epoch (losses, clean accuracy and surrogate success on the defender's own images).
        seconds: wall-clock by phase.
        notes: what the user should be warned of, in words.
        suspect: the class that the defense took for the attacker's, or "next" for all-to-all; None if it looked
            for none, or found none.
        audit: what the defense has found in the model.
        site_reason: why the site was chosen, if nobody named one.
        guarded: what the guard of the accuracy let through; None for defenses without one.
        clean_acc: accuracy on the clean images before and after, in [0, 1]; None straight from a defense.
    """

    model: nn.Module
    polarizer: Polarizer | None
    site: str | None
    history: Sequence[Mapping[str, float]]
    seconds: Mapping[str, float]
    notes: Sequence[str]
    suspect: Suspect | None = None
    audit: Audit | None = None
    site_reason: str | None = None
    guarded: Guarded | None = None
    clean_acc: tuple[float, float] | None = None


@runtime_checkable
class Defense(Protocol):
    """A defense sees a model, a few clean images and a seed; the trigger and the test set do not fit in.

    A defense is a frozen dataclass, whose fields are its settings. A class variable ``revision`` counts its algorithms
    (``revision_of``).
    """

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified: ...


def revision_of(defense: Defense) -> int:
    """Which algorithm the defense's class has: its ``revision: ClassVar[int]``, 1 where it does not say.

    Whoever changes what a defense computes from the same settings raises it, so that results of the older algorithm
    are no longer taken for those of this one.
    """
    return int(getattr(type(defense), "revision", 1))


@torch.no_grad()
def check_images(method: str, model: nn.Module, clean: ImageSet, *, every_class: bool = False) -> int:
    """Refuse, before any time is spent, images that a method cannot work with.

    Args:
        method: its name, for the message.
        model: pixels to logits; left as it is.
        clean: the defender's images.
        every_class: the method trains all weights, and would make the model forget a class without an image.

    Returns:
        K, the number of classes that the model knows.

    Raises:
        BadInputError: fewer than two images, labels that the model does not know, or a class without an image.
    """
    if len(clean) < 2:
        raise BadInputError(f"{clean.source}: {method} needs at least 2 images, got {len(clean)}")
    probe = copy.deepcopy(model).to("cpu").eval()
    logits = probe(to_pixels(clean.images[:2]))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise BadInputError("the model must give logits N x K, one for every class")
    known, highest = int(logits.shape[1]), int(clean.labels.max())
    if highest >= known:
        raise BadInputError(
            f"{clean.source}: has label {highest}, but the model knows {known} classes (0 to {known - 1}); is this "
            "the right data set?"
        )
    counts = class_counts(clean)
    missing = [label for label in range(known) if label >= len(counts) or counts[label] == 0]
    if every_class and missing:
        first = f"{missing[0]} ({clean.classes[missing[0]]})" if missing[0] < clean.num_classes else f"{missing[0]}"
        raise BadInputError(
            f"{clean.source}: no image of {len(missing)} of {known} classes, the first is {first}; {method} trains "
            "all weights and would make the model forget them: give images of every class, or use npd"
        )
    return known


def repaired(
    model: nn.Module, seconds: Mapping[str, float], audit: Audit | None = None, suspect: Suspect | None = None
) -> Purified:
    """The result of a defense that inserts nothing.

    Raises:
        BadInputError: a weight is no longer a finite number.
    """
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise BadInputError("the training diverged: weights are NaN or infinite; use a lower learning rate")
    model = model.to("cpu").eval().requires_grad_(True)
    return Purified(model, None, None, [], seconds, (), suspect, audit)
