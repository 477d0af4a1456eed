"""The settings of the defense with least stand-ins, with their meaning and their checks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.settings import check_literals, check_values


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a least stand-in is looked for (``least.least_stand_ins``).

    Args:
        steps: gradient steps.
        images: fresh images in each step.
        success: share of them that must go over for a radius to shrink.
        start: the first radius, in units of ``Space.unit``.
        inside: how long a beginning is, as a share of that radius.
        cap: the largest radius, in the same units.
        change: log of the factor by which a radius changes in the first steps.
        finest: the same in the last step; evenly in between.
        settle: steps before a radius changes.
        stride: length of a step in radii, at the beginning; it falls evenly to ``last_stride``.
        last_stride: the same at the end.
        averaged: a stand-in's norm is the geometric mean of its radii over this last share of the steps.
    """

    steps: int = 16
    images: int = 8
    success: float = 0.75
    start: float = 1.0
    inside: float = 0.3
    cap: float = 4.5
    change: float = 0.2
    finest: float = 0.05
    settle: int = 2
    stride: float = 0.58
    last_stride: float = 0.08
    averaged: float = 0.25


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What is looked at to find the attacker's class (``evidence``).

    Args:
        classes: with more classes than twice this, only so many of the nearest ones, and as many others to compare
            them with, are looked at.
        pixel_classes: then, in pixels, where a look costs most, only so many of the most suspicious ones among these,
            and as many others.
        pixels: dense stand-ins in pixels, spread over the classes, at least two for each; of smooth ones half as many.
        images: fresh images in each of their steps.
        further: steps by which the least one of each class and form is looked for further, half as long.
        longer: so many times its length the least stand-in of a class in pixels gets, to see what it gains (``gain``).
        gain_images: images that tell it.
        features: dense stand-ins for each class, at the layer's input and at the last map.
        quantile: of the margins that the convex program at the head's input has to overcome.
        program_steps: iterations of its solver.
        floor: share of all stand-ins that is spread evenly over the aims, whatever the evidence says.
        prior: probability that there is a backdoor, before any evidence.
        alternative: a p-value of the attacker's class has the density a p^(a - 1), with this a: 0.4 are below 0.03.
        shown: probability that a backdoor shows in one of the measures, as a trigger has one form.
        clear: factor of the evidence from which on a backdoor, or a form of its trigger, counts as seen ("substantial",
            Jeffreys 1961).
        level: of the verdict: a model is accused where the corrected p-value is below.
    """

    classes: int = 32
    pixel_classes: int = field(default=10, metadata={"later": True})
    pixels: int = 40
    images: int = 16
    further: int = 16
    longer: float = 1.5
    gain_images: int = 100
    features: int = 2
    quantile: float = 0.9
    program_steps: int = 300
    floor: float = 0.1
    prior: float = 0.5
    alternative: float = 0.25
    shown: float = 0.5
    clear: float = 3.0
    level: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Bank:
    """How many stand-ins the layer learns from, and what they may be.

    Args:
        taught: of all forms, besides those of the evidence.
        held: stand-ins that nothing is learned from and that judge what is left.
        led: share of its last images that a stand-in has to lead over to be one.
        dense_unit: of the radii of dense ones in pixels, for 32 x 32 pixels with 3 channels; it grows with the root of
            the size.
        smooth_unit: of smooth ones.  In clean networks they are several times as long, and a cap that most of them
            reach would make the others outliers.
        cells: of the grid that smooth ones are as smooth as, a side.
        images: images that carry each of them.
        dense: share of those in features that cover the whole map.
        depth: how far along the way from the pixels to the layer that map is, in operations.  There a trigger of any
            kind is one direction already, and what is behind it can still tell what a direction leads to.
        stretch: a stand-in is scaled by 1 to 1 + ``stretch`` when it is used.
        held_stretch: one that judges is scaled by each of these on as many images, as triggers are longer than the
            least that succeeds; several, so that what does not stop the longest counts, too.
    """

    taught: int = 32
    held: int = 12
    led: float = 0.5
    dense_unit: float = 2.0
    smooth_unit: float = 4.0
    cells: int = 8
    images: int = 24
    dense: float = 0.5
    depth: float = 2 / 3
    stretch: float = 1.0
    held_stretch: tuple[float, ...] = (1.0, 1.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How the layer is learned.

    Args:
        weights: of the agreement on stand-ins, tried in turn; clean images have 1.
        pull: of ``|A - I|^2``, over the root of the number of images, as a sampling error falls; it keeps the change
            low in rank, and ``Guard.dials`` give its length back.
        lr: of Adam, over the number of channels.
        lr_shift: of Adam for the shift, in standard deviations of the features.
        steps: of learning from stand-ins of the frozen network, with a cosine schedule.
    """

    weights: tuple[float, ...] = (0.03, 0.1, 0.3)
    pull: float = 0.2
    lr: float = 0.25
    lr_shift: float = 0.008
    steps: int = 100


@dataclass(frozen=True, kw_only=True)
class Copies:
    """How clean images are made harder to judge by (``copies.harder``).

    Args:
        total: so many copies judge, at least one of each image.
        moved: by up to this share of a side.
        contrast: changed by up to this share.
        brightness: changed by up to this share of the range.
        covered: by one colour, this share of each side.
    """

    total: int = 1500
    moved: float = 0.125
    contrast: float = 0.3
    brightness: float = 0.1
    covered: float = 0.375


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What the result may cost (``guard``).

    Args:
        max_acc_drop: the largest loss of accuracy on clean images that judge, as a fraction; where the evidence speaks
            against a backdoor, so many times less (``Belief.factor``).
        folds: parts of the clean images; each judges a layer that is learned from the others, and the result is the
            mean of these layers.
        errors: a loss is over the budget where it exceeds it by more than so many standard errors, as a few images
            tell it no better; times ``Belief.certainty``, as only a backdoor is worth the risk.  Where the evidence
            speaks against one, that is negative: a loss has to stay so far below the budget.
        excused: but at most so much of a loss, as a fraction, however few the images: what NPD costs on average in
            Table 1 of Zhu et al.
        systematic: error of an expected loss that more images do not lower, as a fraction, beside the standard error.
            Images that a network was trained on lose more than others, by so much on average (measured).
        dials: how far beyond the learned layer (1) the result may go; points that are measured, from 0 on.
        enough: a share of images that held-out stand-ins may lead over, one of the 24 that carry each; nothing more is
            tried below it.
        quantile: of an aim's held-out stand-ins that counts, as a few of them are no trigger's, but what any network
            follows.
        beyond: by how much the dial goes further than held-out stand-ins need, within the budget: a real trigger is no
            stand-in.
    """

    max_acc_drop: float = 0.008
    folds: int = 4
    errors: float = 2.0
    excused: float = field(default=0.022, metadata={"later": True})
    systematic: float = 0.0025
    dials: tuple[float, ...] = (*(quarter / 4 for quarter in range(13)), 3.5, 4.0, 4.5, 5.0)
    enough: float = 0.05
    quantile: float = 0.75
    beyond: float = 0.5


_SHARES = (
    *("success", "averaged", "quantile", "floor", "prior", "alternative", "shown", "level"),
    *("dense", "depth", "led", "moved", "contrast", "brightness", "covered", "max_acc_drop", "excused", "enough"),
)
"""The settings that lie in [0, 1]."""
_COUNTS = (
    *("steps", "images", "classes", "pixel_classes", "gain_images", "features", "program_steps"),
    *("taught", "held", "cells", "total", "folds"),
)
"""The settings without which there is nothing to look at, to learn from or to judge by."""


def check_ranges(settings: object, part: str) -> None:
    """Refuse numbers that make no sense in ``part``: none, negative, a share above 1, or a count of 0."""
    for each in fields(settings):  # type: ignore[arg-type]  # a dataclass
        value, name = getattr(settings, each.name), f"{part}.{each.name}"
        if value == ():
            raise BadInputError(f"{name} must hold at least one number")
        for number in value if isinstance(value, tuple) else (value,):
            if number < 0 or (each.name in _SHARES and number > 1):
                kind = "a share between 0 and 1" if each.name in _SHARES else "not negative"
                raise BadInputError(f"{name} must be {kind}, got {number}")
            if each.name in _COUNTS and number < 1:
                raise BadInputError(f"{name} must be at least 1, got {number}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of the method.

    Args:
        target: the attacker's class, "next" for all-to-all, or None: stand-ins are drawn in proportion to the evidence.
        site: ``before:NAME`` or ``after:NAME``; None takes that of ``sites.choose_site``.
        batch_size: the most images at once, and those of a step of learning.
        pixels_at_once: the most pixels (of all images, without channels) in a pass of a search in pixels, whose
            gradients need the values of all layers; but always as many images as a stand-in is shown in a step.
        epochs: at least so many passes over the clean images in learning, where ``learning.steps`` steps are fewer.
        precision: "fp32", or "bf16" autocast (losses stay in float32).
        looks: what is looked at to find the attacker's class.
        in_pixels: how stand-ins in pixels are looked for.
        in_features: likewise at the layer's input.
        bank: how many the layer learns from.
        learning: how it learns.
        copies: harder images, which judge, too.
        guard: what the result may cost.

    Raises:
        BadInputError: a setting is out of its range.
    """

    target: int | Literal["next"] | None = None
    site: str | None = None
    batch_size: int = 128
    pixels_at_once: int = field(default=2_000_000, metadata={"later": True})
    epochs: int | None = field(default=None, metadata={"later": True})
    precision: Precision = "fp32"
    looks: Looks = field(default_factory=Looks)
    in_pixels: Search = field(default_factory=Search)
    in_features: Search = field(
        default_factory=lambda: Search(steps=12, images=16, success=0.8, start=0.5, cap=4.0, change=0.3)
    )
    bank: Bank = field(default_factory=Bank)
    learning: Learning = field(default_factory=Learning)
    copies: Copies = field(default_factory=Copies)
    guard: Guard = field(default_factory=Guard)

    def steps(self, images: int) -> int:
        """Of learning from so many images, half a batch of them in a step; fewer than usual are no layer yet."""
        passes = math.ceil((self.epochs or 0) * images / max(1, self.batch_size // 2))
        return max(self.learning.steps, passes)

    def searched_at_once(self, shape: Sequence[int]) -> int:
        """Images of ``shape`` (c, h, w) in a pass of a search in pixels."""
        least = max(self.looks.images, self.in_pixels.images)
        return min(self.batch_size, max(least, self.pixels_at_once // math.prod(shape[1:])))

    def __post_init__(self) -> None:
        check_literals(self)
        check_values(self)
        for part in ("looks", "in_pixels", "in_features", "bank", "learning", "copies", "guard"):
            check_ranges(getattr(self, part), part)
        if min(self.batch_size, self.pixels_at_once) < 1:
            raise BadInputError(
                f"batch_size and pixels_at_once must be at least 1, got {self.batch_size} and {self.pixels_at_once}"
            )
        for name, bound in (("clear", 1), ("alternative", 0)):
            if getattr(self.looks, name) <= bound:
                raise BadInputError(f"looks.{name} must be above {bound}, got {getattr(self.looks, name)}")
        if self.guard.dials != tuple(sorted({0.0, *self.guard.dials})):
            raise BadInputError(f"guard.dials must begin with 0, the model as it is, and rise, got {self.guard.dials}")
        if self.epochs is not None and self.epochs < 1:
            raise BadInputError(f"epochs must be at least 1, got {self.epochs}")
