"""What all attacks share: label rule, poisoning, training the victim."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ByteImages, ImageSet, to_pixels
from neural_polarizer.data.poison import LabelRule, Poisoned, TriggeredSet, attacked_labels, poison, triggered_test
from neural_polarizer.errors import BadInputError
from neural_polarizer.progress import Progress, silent
from neural_polarizer.rng import stream
from neural_polarizer.settings import check_literals
from neural_polarizer.train.fit import Accomplice, below, fit
from neural_polarizer.train.schedule import Schedule

TriggerState = Mapping[str, Tensor]
"""All that a trigger has learned: named tensors, stored beside the model."""

NOTHING: TriggerState = MappingProxyType({})

SEVERAL = 3
"""Triggers of the rule "multi-target", unless its classes are named."""
QUARTERS = 4
SOURCE_SHARE = 0.5
"""Of the source class that is poisoned at most: a class without clean images would be lost."""
_LATER: Mapping[str, bool] = {"later": True}


@dataclass(frozen=True)
class Category:
    """How the paper sorts the attacks (Table 10)."""

    fusion: Literal["additive", "non-additive"]  # how trigger and image are joined
    size: Literal["local", "global"]  # the part of the image that changes
    visibility: Literal["visible", "invisible"]  # whether people can see it
    variability: Literal["agnostic", "specific"]  # the same trigger for all images, or one for each


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What an attack works with, beside the data."""

    schedule: Schedule  # how to train the victim
    seed: int  # fixes every random choice
    device: torch.device  # where to compute
    # Gives a classifier that was trained without poison by the same recipe (in evaluation mode, on the CPU); only
    # attacks that need one call it.
    clean_model: Callable[[], nn.Module]
    progress: Progress = silent  # told about every step
    checkpoint: Path | None = None  # file for the state of the victim's training, so that it can go on after a kill

    def frozen_clean_model(self) -> nn.Module:
        """The clean classifier on the device, in evaluation mode, to take gradients for pixels through."""
        return self.clean_model().to(self.device).eval().requires_grad_(False)

    def train(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        accomplice: Accomplice | None = None,
        triggered: Bool[Tensor, " n"] | None = None,
        between: Callable[[], None] | None = None,
    ) -> None:
        """``train.fit`` of the victim, by the schedule and the seed."""
        fit(
            model,
            data,
            self.schedule,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
            checkpoint=self.checkpoint,
            accomplice=accomplice,
            triggered=triggered,
            between=between,
        )


@dataclass(frozen=True, eq=False)
class LearnedTrigger:
    """An attack together with what its trigger has learned: stamps and relabels."""

    attack: "Attack"  # the attack
    state: TriggerState  # what its trigger has learned
    variant: int = 0  # which of the triggers of the rule "multi-target": it is turned by so many quarter turns
    # The seed of the training set that is stamped, where triggers in training may differ from those at test; None is at
    # test.
    training: int | None = None

    def stamp(self, images: ByteImages) -> ByteImages:
        """The triggered form of ``images``."""
        turned = images.rot90(self.variant, (2, 3))
        if self.training is None:
            stamped = self.attack.stamp(turned, self.state)
        else:
            generator = stream(self.training, "training trigger", self.variant)
            stamped = self.attack.stamp_in_training(turned, self.state, generator)
        return stamped.rot90(-self.variant, (2, 3))

    def relabel(self, labels: Int64[Tensor, " n"], num_classes: int) -> Int64[Tensor, " n"]:
        """The attacker's labels."""
        return self.attack.relabel(labels, num_classes, self.variant)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A backdoor attack; the settings are its fields.

    A new attack is one subclass with a ``stamp``. An attack whose trigger is learned before the victim also has a
    ``learn``; one that learns it together with the victim, or poisons every batch anew, is a
    ``batches.BatchAttack``.

    Args:
        target: the attacker's class T.
        label_rule: "all-to-one" relabels to T, "all-to-all" to ``(y + 1) mod K``; "source-specific" relabels one class
            to T, and images of the others with the trigger keep their label; "multi-target" has a trigger for each of
            several classes, the same one in quarter turns.
        poison_rate: share of all training images that are poisoned, in [0, 1]; at most the whole target class with true
            labels, and half of the source class.
        source: the class of "source-specific"; None is 0, or 1 where T is 0.
        targets: the classes of "multi-target", 2 to 4 of them; () is T and the two classes after it.
        cover_ratio: images that carry the trigger and keep their label, for each poisoned one; None is 1 for
            "source-specific", else what the attack's class says (``covers``). Attacks that poison every batch anew have
            none of these.

    Raises:
        BadInputError: a setting is out of its range.
    """

    category: ClassVar[Category]
    title: ClassVar[str] = ""
    """Its name in tables."""
    laptop: ClassVar[Mapping[str, Any]] = NOTHING
    """Settings that make the attack fit for the scale "laptop"."""
    smoke: ClassVar[Mapping[str, Any]] = NOTHING
    """Settings with which every step of it is taken in a moment."""
    laptop_epochs: ClassVar[int] = 5
    """Passes over the training images at that scale."""
    implant_epochs: ClassVar[int] = 4
    """Passes over them when a trained network is fine-tuned."""
    recipe: ClassVar[Mapping[str, Any]] = NOTHING
    """What the paper's training schedule has different for this attack."""
    clean_label: ClassVar[bool] = False
    """Only images of the target class are poisoned, so that all labels stay true."""
    most: ClassVar[float] = 1.0
    """Share of that class that is poisoned at most."""
    covers: ClassVar[float] = 0.0
    """Images that carry the trigger and keep their label, for each poisoned one."""
    turns: ClassVar[bool] = True
    """The trigger turned by a quarter is another trigger, so that there can be several."""

    target: int = 0
    label_rule: LabelRule = "all-to-one"
    poison_rate: float = 0.1
    source: int | None = field(default=None, metadata=_LATER)
    targets: tuple[int, ...] = field(default=(), metadata=_LATER)
    cover_ratio: float | None = field(default=None, metadata=_LATER)

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
        if self.cover_ratio is not None and not self.cover_ratio >= 0:
            raise BadInputError(f"the cover ratio must be at least 0, got {self.cover_ratio}")
        self._check_rule()

    def _check_rule(self) -> None:
        if self.source is not None and (
            self.label_rule != "source-specific" or self.source == self.target or self.source < 0
        ):
            raise BadInputError(
                f"a source class goes with the label rule source-specific and differs from the target class, got "
                f"{self.source} with {self.label_rule} to {self.target}"
            )
        if self.targets and (
            self.label_rule != "multi-target"
            or len(set(self.targets)) != len(self.targets)
            or not 2 <= len(self.targets) <= QUARTERS
            or min(self.targets) < 0
        ):
            raise BadInputError(
                f"targets are 2 to {QUARTERS} different classes and go with the label rule multi-target, got "
                f"{self.targets} with {self.label_rule}"
            )
        if self.label_rule == "multi-target" and not self.turns:
            raise BadInputError(
                f"{type(self).__name__} has one trigger only, so that the label rule multi-target is not for it"
            )

    @property
    def poisons_only(self) -> int | None:
        """The class that poisoned images are chosen from; None is all classes."""
        if self.label_rule == "source-specific":
            return self._source
        return self.target if self.clean_label else None

    @property
    def _source(self) -> int:
        return self.source if self.source is not None else int(self.target == 0)

    def check(self, images: ImageSet) -> None:
        """Refuse, before anything is trained, images that the attack cannot work on.

        That is where there is no such target class, the class to poison has no image, or the images have the wrong
        size.
        """
        for trigger in self.triggers():
            trigger.relabel(images.labels[:1], images.num_classes)
        only = self.poisons_only
        if only is not None and not (images.labels == only).any():
            which = "target" if self.clean_label else "source"
            raise BadInputError(f"{images.source}: no image of the {which} class {only} to put the trigger on")
        if self.label_rule == "multi-target" and len(set(images.image_size)) > 1:
            raise BadInputError(f"multi-target turns its triggers, which needs square images, got {images.image_size}")

    def learn(self, train: ImageSet, workshop: Workshop) -> dict[str, Tensor]:
        """What ``stamp`` needs to know, found before the victim is trained; nothing by default."""
        return {}

    @abstractmethod
    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """The triggered form of ``images``; the same images and the same state always give the same result."""

    def stamp_in_training(self, images: ByteImages, state: TriggerState, generator: torch.Generator) -> ByteImages:
        """The triggered form of training images, where it is another than at test; the generator draws what varies."""
        return self.stamp(images, state)

    def relabel(self, labels: Int64[Tensor, " n"], num_classes: int, variant: int = 0) -> Int64[Tensor, " n"]:
        """The attacker's labels (int64, in 0..K-1).

        Args:
            labels: the true ones.
            num_classes: K.
            variant: which of the triggers of "multi-target" the images carry.

        Raises:
            BadInputError: the target class, or the source class, does not exist.
        """
        target = self.targets[variant] if self.targets else self.target
        if target >= num_classes:
            raise BadInputError(f"the target class must lie in 0..{num_classes - 1}, got {target}")
        if not self.targets:
            target = (target + variant) % num_classes
        if self.label_rule == "source-specific" and self._source >= num_classes:
            raise BadInputError(f"the source class must lie in 0..{num_classes - 1}, got {self._source}")
        return attacked_labels(labels, num_classes, self.label_rule, target, self._source)

    def triggers(self, state: TriggerState = NOTHING, training: int | None = None) -> tuple[LearnedTrigger, ...]:
        """The trigger, or those of "multi-target"; with a seed, as they are in training."""
        several = len(self.targets) or SEVERAL if self.label_rule == "multi-target" else 1
        return tuple(LearnedTrigger(self, state, variant, training) for variant in range(several))

    def triggered(self, test: ImageSet, state: TriggerState = NOTHING) -> TriggeredSet:
        """The frozen triggered test set."""
        return triggered_test(test, self.triggers(state))

    def poisoned(self, train: ImageSet, state: TriggerState = NOTHING, *, seed: int) -> Poisoned:
        """The training set with the backdoor in it."""
        of_source = self.label_rule == "source-specific"
        ratio = self.cover_ratio
        return poison(
            train,
            self.triggers(state, seed),
            rate=self.poison_rate,
            seed=seed,
            only=self.poisons_only,
            most=SOURCE_SHARE if of_source else self.most,
            cover_ratio=ratio if ratio is not None else max(self.covers, float(of_source)),
        )

    def between_epochs(self, model: nn.Module, pixels: Float[Tensor, "n c h w"]) -> None:  # noqa: B027 (a hook)
        """What an attack on the parameters does to the model after every epoch but the last; nothing by default."""

    def plant(self, model: nn.Module, train: ImageSet, state: TriggerState, workshop: Workshop) -> "Planted":
        """Train ``model`` in place with the backdoor; leaves it in evaluation mode."""
        poisoned, chosen, covers = self.poisoned(train, state, seed=workshop.seed)
        marked = torch.cat([chosen, covers])
        triggered = torch.zeros(len(train), dtype=torch.bool).index_fill(0, marked, True)
        workshop.train(
            model,
            poisoned,
            triggered=triggered,
            between=lambda: self.between_epochs(model, to_pixels(train.images[:1].to(workshop.device))),
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
    module.load_state_dict(below(prefix, state))
    return module.eval()
