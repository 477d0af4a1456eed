"""The frame of every defense: ``Defense.repair`` does all that is the same for all of them around one small method."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar, final

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.fitting import Understood, check_classes, check_gradients, too_little, understood
from neural_polarizer.defenses.form import check_one_layer, take_form
from neural_polarizer.defenses.result import Outcome, accusing_nobody
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.forms import check_module, in_float32
from neural_polarizer.models.normalize import one_logit
from neural_polarizer.progress import Progress, silent
from neural_polarizer.rng import global_rng, stream
from neural_polarizer.settings import check_values, places
from neural_polarizer.train.fit import is_finite

MOST_AT_ONCE = 256
"""Images in a forward pass without gradients, where the settings of a method do not say less."""

MANY_CLASSES = 20
"""From so many classes on, a method whose time grows with them says what they cost."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a method works with, beside the model, the images and its settings.

    Args:
        seed: fixes all that is drawn.
        device: where model and method compute.
        progress: to be told about every step.
        seconds: wall-clock by phase; ``timed`` adds to it.
    """

    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)

    def stream(self, *use: str | int) -> torch.Generator:
        """A CPU generator for one named use of the seed."""
        return stream(self.seed, *use)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block's seconds as those of ``phase``."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


@dataclass(frozen=True, eq=False, kw_only=True)
class Repaired(Outcome):
    """A repaired classifier, in the dtype, on the device and in the modes of the original, and how it came about."""

    defense: "Defense"  # with its settings
    seed: int  # its randomness
    seconds: Mapping[str, float]  # wall-clock by phase
    device: str  # where it was computed
    # Accuracy on the clean images before and after, in [0, 1]; None straight from a defense.
    clean_acc: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """A defense sees a model, a few clean images and a seed; the trigger and the test set do not fit in.

    A new defense is a frozen dataclass derived from this one: its fields are its settings, each with a default, and
    ``_run`` is its algorithm (docs/how-to/add-a-method.md).
    """

    title: ClassVar[str] = ""
    """Its name in tables and messages."""
    story: ClassVar[tuple[str, ...]] = ()
    """What it does to a model, in sentences of the report."""
    revision: ClassVar[int] = 1
    """Which algorithm this is: whoever changes what is computed from the same settings raises it, so that results of
    the older algorithm are no longer taken for those of this one."""
    laptop: ClassVar[Mapping[str, Any]] = NOTHING
    """Settings that make it fit for the scale "laptop"."""
    smoke: ClassVar[Mapping[str, Any]] = NOTHING
    """Settings with which every step of it is taken in a moment."""
    for_profile: ClassVar[Mapping[str, Mapping[str, Any]]] = NOTHING
    """Settings that a data set changes, at every scale."""
    least_images: ClassVar[int] = 2
    """How many clean images it needs."""
    every_class: ClassVar[bool] = False
    """It trains all weights, and would make the model forget a class without an image."""
    inserts: ClassVar[bool] = False
    """It puts a layer into the model, at its setting ``site``."""

    @final
    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Repaired:
        """What the defense makes of a copy of ``model``, in the dtype, on the device and in the modes of the original.

        The method itself computes in float32 on ``device``, and draws from streams of its own: neither the caller's
        model nor torch's global generators are touched. Weights that it left alone keep their very bits. An inserted
        layer takes type, device and mode of the module beside it, and can be trained where any parameter of the
        original can.

        Args:
            model: float pixels in [0, 1] to logits ``(n, k)``, in any floating-point type, on any device, in any mode.
            clean: the defender's images; grey ones are given with as many channels as the model takes.
            seed: the only randomness.
            device: where to compute.
            progress: told about every step.

        Raises:
            BadInputError: model, images and defense do not go together, or the training diverged.
        """
        _check_seed(seed)
        check_values(self)
        check_one_layer(check_module(model), inserts=self.inserts)
        working = in_float32(model)
        found = self._fitting(working, clean)
        place, sound = torch.device(device), is_finite(working)
        run = Run(seed=seed, device=place, progress=progress)
        with global_rng(seed, "defense"), torch.enable_grad(), _spread_missing(found.images):
            outcome = self._run(found.model.to(place), found.images, run)
        if sound and not is_finite(outcome.model):
            raise BadInputError("the training diverged: weights are NaN or infinite; use a lower learning rate")
        result = one_logit(outcome.model, working) if found.yes_no else outcome.model
        take_form(result, model)
        told = {each.name: getattr(outcome, each.name) for each in fields(Outcome)} | {"model": result}
        reason = too_little(found.images, outcome.suspect)
        if outcome.suspect is not None and getattr(self, "target", None) is None and reason is not None:
            told |= {"suspect": None, "audit": accusing_nobody(outcome.audit, reason)}
        return Repaired(**told, defense=self, seed=seed, seconds=run.seconds, device=str(place))

    def _fitting(self, model: nn.Module, clean: ImageSet) -> Understood:
        """Model and images as they go together; too few images are refused."""
        name = self.title or type(self).__name__
        if len(clean) < self.least_images:
            least = f"{self.least_images} image{'' if self.least_images == 1 else 's'}"
            raise BadInputError(f"{clean.source}: {name} needs at least {least}, got {len(clean)}")
        found = understood(model, clean)
        check_gradients(found.model, found.images)
        check_classes(found.images, int(found.logits.shape[1]), forgets=name if self.every_class else None)
        return found

    @abstractmethod
    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        """The algorithm.

        Args:
            model: the method's own copy, in float32 on ``run.device``, in evaluation mode; to be changed at will.
            clean: at least ``least_images`` images of classes that the model knows.
            run: seed, device, progress and clock.
        """

    def cost_of_classes(self, images: int, classes: int) -> str | None:  # noqa: ARG002 (for those that need them)
        """What K ``classes`` and so many images cost, in a sentence that names the setting with which they cost less.

        None where there are few, or where it is not the classes that cost.
        """
        return None

    @property
    def sees_mixture(self) -> bool | None:
        """Whether its images are of the poisoned training set; None of a method that sees clean ones only."""
        return None

    @property
    def at_once(self) -> int:
        """The most images that anything around the method should send through the model in one pass."""
        return min([MOST_AT_ONCE, *(attrgetter(place)(self) for place in places(self, "batch_size"))])

    @property
    def precision_used(self) -> str:
        """What it computes in: "fp32", "bf16", or "mixed" if its parts differ."""
        found = {str(attrgetter(place)(self)) for place in places(self, "precision")}
        return "mixed" if len(found) > 1 else next(iter(found), "fp32")


def _check_seed(seed: object) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise BadInputError(f"the seed must be a whole number, got {seed!r}")


@contextmanager
def _spread_missing(images: ImageSet) -> Iterator[None]:
    """Say in the user's words what a batch norm in training mode says of a single value per channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise BadInputError(
            f"{images.source}: {len(images)} image{'' if len(images) == 1 else 's'} in a batch give the features "
            "at this site a single value per channel, which has no spread; use more images, or another --site"
        ) from None
