"""What all attacks share: label rule, poisoning, training the victim."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import LabelRule, TriggeredSet, attacked_labels, poison, triggered_test
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import check_literals
from neural_polarizer.train import Progress, Schedule, fit, silent

TriggerState = Mapping[str, Tensor]
"""All that a trigger has learned: named tensors, stored beside the model."""

NOTHING: TriggerState = MappingProxyType({})


@dataclass(frozen=True)
class Category:
    """How the paper sorts the attacks (Table 10).

    Args:
        fusion: how trigger and image are joined.
        size: the part of the image that changes.
        visibility: whether people can see it.
        variability: the same trigger for all images, or one for each.
    """

    fusion: Literal["additive", "non-additive"]
    size: Literal["local", "global"]
    visibility: Literal["visible", "invisible"]
    variability: Literal["agnostic", "specific"]


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What an attack works with, beside the data.

    Args:
        schedule: how to train the victim.
        seed: fixes every random choice.
        device: where to compute.
        clean_model: gives a classifier that was trained without poison by the same recipe (in evaluation mode, on
            the CPU); only attacks that need one call it.
        progress: told about every step.
        checkpoint: file for the state of the victim's training, so that it can go on after a kill.
    """

    schedule: Schedule
    seed: int
    device: torch.device
    clean_model: Callable[[], nn.Module]
    progress: Progress = silent
    checkpoint: Path | None = None


@dataclass(frozen=True, eq=False)
class LearnedTrigger:
    """An attack together with what its trigger has learned: stamps and relabels."""

    attack: "Attack"
    state: TriggerState

    def stamp(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """The triggered form of ``images``."""
        return self.attack.stamp(images, self.state)

    def relabel(self, labels: Int64[Tensor, " n"], num_classes: int) -> Int64[Tensor, " n"]:
        """The attacker's labels."""
        return self.attack.relabel(labels, num_classes)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A backdoor attack; the settings are its fields.

    A new attack is one subclass with a ``stamp``. An attack whose trigger is learned before the victim also has a
    ``learn``; one that learns it together with the victim, or poisons every batch anew, has its own ``plant``.

    Args:
        target: the attacker's class T, for the label rule "all-to-one".
        label_rule: "all-to-one" relabels to T, "all-to-all" to ``(y + 1) mod K``.
        poison_rate: share of all training images that are poisoned, in [0, 1]; with true labels at most the whole
            target class.

    Raises:
        BadInputError: a setting is out of its range.
    """

    category: ClassVar[Category]
    laptop: ClassVar[Mapping[str, Any]] = NOTHING
    """Settings that make the attack fit for the scale "laptop"."""
    laptop_epochs: ClassVar[int] = 5
    """Passes over the training images at that scale."""
    recipe: ClassVar[Mapping[str, Any]] = NOTHING
    """What the paper's training schedule has different for this attack."""
    clean_label: ClassVar[bool] = False
    """Only images of the target class are poisoned, so that all labels stay true."""

    target: int = 0
    label_rule: LabelRule = "all-to-one"
    poison_rate: float = 0.1

    def __post_init__(self) -> None:
        check_literals(self)
        if not 0 <= self.poison_rate <= 1:
            raise BadInputError(f"the poison rate must lie in [0, 1], got {self.poison_rate}; the paper uses 0.1")
        if self.target < 0:
            raise BadInputError(f"the target class must be at least 0, got {self.target}")
        if self.clean_label and self.label_rule != "all-to-one":
            raise BadInputError(
                f"{type(self).__name__} leaves all labels true, which the label rule {self.label_rule} does not: use "
                "all-to-one"
            )

    @property
    def poisons_only(self) -> int | None:
        """The class that poisoned images are chosen from; None is all classes."""
        return self.target if self.clean_label else None

    def check(self, images: ImageSet) -> None:
        """Refuse, before anything is trained, images that the attack cannot work on.

        Raises:
            BadInputError: there is no such target class, it has no image where labels stay true, or the images have
                the wrong size.
        """
        self.relabel(images.labels[:1], images.num_classes)
        if self.clean_label and not (images.labels == self.target).any():
            raise BadInputError(f"{images.source}: no image of the target class {self.target} to put the trigger on")

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """What ``stamp`` needs to know, found before the victim is trained; nothing by default."""
        return {}

    @abstractmethod
    def stamp(self, images: UInt8[Tensor, "n c h w"], state: TriggerState = NOTHING) -> UInt8[Tensor, "n c h w"]:
        """The triggered form of ``images``; the same images and the same state always give the same result."""

    def relabel(self, labels: Int64[Tensor, " n"], num_classes: int) -> Int64[Tensor, " n"]:
        """The attacker's labels (int64, in 0..K-1).

        Raises:
            BadInputError: the target class does not exist.
        """
        if self.target >= num_classes:
            raise BadInputError(f"the target class must lie in 0..{num_classes - 1}, got {self.target}")
        return attacked_labels(labels, num_classes, self.label_rule, self.target)

    def triggered(self, test: ImageSet, state: TriggerState = NOTHING) -> TriggeredSet:
        """The frozen triggered test set."""
        return triggered_test(test, LearnedTrigger(self, state))

    def poisoned_rows(self, batch: int, generator: torch.Generator) -> int:
        """How many images of a batch an attack that poisons batches takes.

        ``floor(rate * batch)``; if that is none, one image with probability ``rate * batch``.
        """
        share = self.poison_rate * batch
        return int(share) or int(float(torch.rand((), generator=generator)) < share)

    def plant(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> "Planted":
        """Train ``model`` in place with the backdoor; leaves it in evaluation mode."""
        poisoned, chosen = poison(
            train,
            LearnedTrigger(self, state),
            rate=self.poison_rate,
            seed=workshop.seed,
            only=self.poisons_only,
        )
        triggered = torch.zeros(len(train), dtype=torch.bool).index_fill(0, chosen, True)
        fit(
            model,
            poisoned,
            workshop.schedule,
            seed=workshop.seed,
            device=workshop.device,
            progress=workshop.progress,
            checkpoint=workshop.checkpoint,
            triggered=triggered,
        )
        return Planted(state, len(chosen))


@dataclass(frozen=True, eq=False)
class Planted:
    """What planting gives: the trigger as it is in the end, and how many images were poisoned (in each epoch)."""

    state: TriggerState
    n_poisoned: int


def restored(make: Callable[[], nn.Module], state: TriggerState, prefix: str = "") -> nn.Module:
    """What ``make`` builds, with the tensors below ``prefix`` in place of random ones; in evaluation mode."""
    with torch.device("meta"):  # draws no random numbers
        module = make()
    module.to_empty(device="cpu")
    module.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    return module.eval()
