"""What NPD's perturbations aim at, where and how far they go; arithmetic on labels and clean logits alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Audit
from neural_polarizer.defenses.npd_audit import reachability_audit
from neural_polarizer.defenses.npd_settings import NeuralPolarizerSettings
from neural_polarizer.errors import BadInputError
from neural_polarizer.losses import runner_up
from neural_polarizer.rng import stream
from neural_polarizer.suspects import (
    CELLS,
    Effort,
    SharedAttack,
    Suspect,
    aim_of_pixels,
    clearest,
    easiest,
    lead,
    reachability,
    standing_out,
)

SEARCH_FIRST, SEARCH_IN_PIXELS, SEARCH_IN_FEATURES = Effort(12, 6), Effort(24, 12), Effort(256, 8)
"""What ``find_aims`` spends on each aim."""


def check_classes(settings: NeuralPolarizerSettings, clean: ImageSet, num_classes: int) -> None:
    """Refuse labels and a target that the model does not know.

    Raises:
        BadInputError: one lies outside 0..K-1.
    """
    highest = int(clean.labels.max())
    if highest >= num_classes:
        raise BadInputError(
            f"{clean.source}: has label {highest}, but the model knows {num_classes} classes (0 to "
            f"{num_classes - 1}); is this the right data set?"
        )
    target = settings.target
    if isinstance(target, int) and not 0 <= target < num_classes:
        raise BadInputError(f"the target class must lie in 0..{num_classes - 1}, got {target}")


@dataclass(frozen=True, eq=False)
class Aim:
    """What the images of a batch that have a part in the adversarial loss are perturbed towards.

    Args:
        places: of these images in the batch.
        labels: their true ones.
        targets: the classes that they are taken to be pushed towards.
        towards: the labels that the perturbations descend towards, or ascend from.
        predicted: what the polarized network takes the clean images for.
        in_features: which of them are perturbed at what enters the layer; the others are in pixels.
    """

    places: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    targets: Int64[Tensor, " n"]
    towards: Int64[Tensor, " n"]
    predicted: Int64[Tensor, " n"]
    in_features: Bool[Tensor, " n"]


@dataclass(frozen=True)
class Aims:
    """The decisions of the inner problem (eq. 4; spec 3.3 and 3.6).

    Args:
        settings: of the run.
        num_classes: K.
        in_pixels: the suspect that perturbations of pixels aim at, if there is one.
        in_features: likewise for what enters the layer.
        cells: a side, of the grid that perturbations of pixels are as smooth as, where a smooth one has betrayed the
            suspect; None: each pixel by itself.
        pixels_alone: whether nothing is perturbed in features.
    """

    settings: NeuralPolarizerSettings
    num_classes: int
    in_pixels: Suspect | None = None
    in_features: Suspect | None = None
    cells: int | None = None
    pixels_alone: bool = False

    def of_batch(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Aim:
        """Who is perturbed towards what, from the clean logits and the true labels.

        Where the attacker's class is the true one, L_asr would fight L_bce1: such images stay benign (spec 3.6).
        """
        # The first ones, as the order is random.
        in_features = torch.arange(len(labels), device=labels.device) < round(self.feature_share * len(labels))
        targets = self._targets(logits, labels, in_features)
        places = (targets != labels).nonzero()[:, 0]
        targets, labels = targets[places], labels[places]
        towards = targets if self.settings.goal == "targeted" else labels
        return Aim(places, labels, targets, towards, logits[places].argmax(dim=1), in_features[places])

    @property
    def feature_share(self) -> float:
        """All of a batch in the fast mode, and where nothing is known that pixels could be moved towards.

        Nothing where smooth pictures are the better stand-in (docs/defaults.md).
        """
        settings = self.settings
        if settings.speed == "fast":
            return 1.0
        if self.pixels_alone:
            return 0.0
        clueless = settings.suspect and self.in_pixels is None and settings.target is None
        return (
            1.0 if clueless and settings.goal == "targeted" and settings.feature_share > 0 else settings.feature_share
        )

    @property
    def shared(self) -> bool:
        """Whether the perturbations of pixels in a batch are one."""
        return self._universal or self.in_pixels is not None

    @property
    def steps(self) -> int:
        """The number of inner steps in pixels."""
        settings = self.settings
        return settings.shared_steps if self.shared and settings.shared_steps is not None else settings.steps

    def radius(self, count: int, done: int) -> float | Tensor:
        """Rho of the perturbations of ``count`` images' pixels after ``done`` steps: one for all, or ``(count,)``."""
        radii = self.settings.radii
        if self.shared and self.settings.shared_radius is not None:
            return self.settings.shared_radius
        if self.shared or len(radii) == 1:
            return radii[done % len(radii)]
        return torch.tensor(radii).repeat(math.ceil(count / len(radii)))[:count]

    def groups(self, towards: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """For ``perturb_features``: images with the same number have one perturbation of features in common."""
        places = torch.arange(len(towards), device=towards.device)
        alike = places < round(self.settings.feature_common * len(towards))
        return torch.where(alike | self._universal, towards, -1 - places)

    @property
    def _universal(self) -> bool:
        return self.settings.perturbation == "universal"

    def _targets(
        self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], in_features: Bool[Tensor, " n"]
    ) -> Int64[Tensor, " n"]:
        """Eq. 4 where nothing better is known."""
        if self.settings.target is not None:
            return self._aimed_at(self.settings.target, labels)
        in_pixels = runner_up(logits, labels) if self.in_pixels is None else self._aimed_at(self.in_pixels, labels)
        if self.in_features is None:
            return in_pixels
        return torch.where(in_features, self._aimed_at(self.in_features, labels), in_pixels)

    def _aimed_at(self, target: int | Literal["next"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return (labels + 1) % self.num_classes if target == "next" else torch.full_like(labels, target)


def find_aims(
    aims: Aims,
    labels: Int64[Tensor, " n"],
    *,
    in_pixels: Callable[[int | None], SharedAttack],
    in_features: SharedAttack,
    seed: int,
) -> tuple[Aims, Suspect | None, Audit | None]:
    """Look for the labels that perturbations should aim at, if nobody has told them.

    Args:
        aims: without suspects.
        labels: of the clean images.
        in_pixels: of a number of cells (``perturb``) to one perturbation of pixels for all images.
        in_features: one of what enters the layer.
        seed: chooses the images.

    Returns:
        The aims with suspects, the one that stands out, and what the user is told of the search.
    """
    settings = aims.settings
    if settings.goal == "untargeted" or settings.target is not None or not settings.adversarial:
        return aims, None, None
    if not settings.suspect and aims.feature_share == 0:
        return aims, None, None
    search = partial(reachability, labels=labels, num_classes=aims.num_classes)
    features = search(in_features, generator=stream(seed, "aim"), effort=SEARCH_IN_FEATURES, neighbours=True)
    if not settings.suspect:
        aim = easiest(features)
        return Aims(settings, aims.num_classes, None, aim), None, reachability_audit(features, None, aim)
    views = {
        cells: search(in_pixels(cells), generator=stream(seed, "suspect"), effort=SEARCH_IN_PIXELS, first=SEARCH_FIRST)
        for cells in (None, CELLS)
    }
    cells = clearest(views)
    pixels = views[cells]
    suspected, shared = standing_out(pixels, features), aim_of_pixels(pixels, features)
    aim = easiest(features) if shared is None else shared
    audit = reachability_audit(features, suspected, aim, views=views)
    smooth = cells if isinstance(suspected, int) else None
    alone = smooth is not None and lead(pixels) > lead(features[:-2])
    return Aims(settings, aims.num_classes, shared, aim, smooth, alone), suspected, audit
