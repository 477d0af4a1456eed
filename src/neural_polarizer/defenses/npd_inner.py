"""The inner problem of NPD: what the images of a batch are perturbed towards, and how (eqs. 4, 5, 7, 8, 10)."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.npd_settings import NeuralPolarizerSettings
from neural_polarizer.losses import runner_up
from neural_polarizer.perturb import Ball, perturb, perturb_features
from neural_polarizer.polarizer import Polarizer, shifted
from neural_polarizer.suspects import Suspect

SEARCH_RADIUS = 0.2
"""Of the perturbations of features that a suspect is looked for with, in the units of ``feature_radius``."""

Values = tuple[Tensor, ...]


class Passes:
    """Forward passes through a polarized network that is cut in front of its polarizer.

    Args:
        settings: precision and ``compile``.
        polarizer: the layer.
        prefix: what lies in front of it: pixels to all values that the rest needs.
        tail: the rest, from the layer on: these values to logits.
        device: where to compute.
    """

    def __init__(
        self,
        settings: NeuralPolarizerSettings,
        polarizer: Polarizer,
        prefix: Callable[[Tensor], Values],
        tail: Callable[..., Tensor],
        device: torch.device,
    ) -> None:
        self.polarizer = polarizer
        self.device = device
        self.predict = torch.compile(self._predict) if settings.compile else self._predict
        self._half = settings.precision == "bf16"
        self._prefix = prefix
        self._tail = tail

    def front(self, pixels: Float[Tensor, "n c h w"]) -> Values:
        """What the prefix gives."""
        with self._autocast():
            return self._prefix(pixels)

    def logits(self, values: Values, shift: Float[Tensor, "n ..."] | None = None) -> Float[Tensor, "n k"]:
        """What the tail makes of ``values`` if the layer's input is moved by ``shift`` (``polarizer.shifted``)."""
        moved = nullcontext() if shift is None else shifted(self.polarizer, shift)
        with self._autocast(), moved:
            return self._tail(*values).float()

    def _predict(self, pixels: Tensor) -> Float[Tensor, "n k"]:
        with self._autocast():
            return self._tail(*self._prefix(pixels)).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)


@dataclass(frozen=True, eq=False)
class Perturbed:
    """The images of a batch that have a part in the adversarial loss, perturbed.

    Args:
        labels: their true ones.
        targets: the classes that they are taken to be pushed towards.
        predicted: what the polarized network takes the clean images for.
        values: what the prefix gives for them, perturbed in pixels or not.
        shift: how far the layer's input is moved, or None.
    """

    labels: Int64[Tensor, " n"]
    targets: Int64[Tensor, " n"]
    predicted: Int64[Tensor, " n"]
    values: Values
    shift: Float[Tensor, "n ..."] | None


class InnerProblem:
    """The perturbations of a run; ``pixel_aim`` and ``feature_aim`` may be set once suspects are known.

    Args:
        settings: of the run.
        passes: through the polarized network.
        images: all clean ones.
        values: what the prefix gives for them.
        feature_shape: of what enters the layer for one image.
        num_classes: K.
    """

    def __init__(
        self,
        settings: NeuralPolarizerSettings,
        passes: Passes,
        images: UInt8[Tensor, "n c h w"],
        values: Values,
        feature_shape: tuple[int, ...],
        num_classes: int,
    ) -> None:
        self.settings = settings
        self.passes = passes
        self.images = images
        self.values = values
        self.feature_shape = feature_shape
        self.num_classes = num_classes
        self.pixel_aim: Suspect | None = None
        self.feature_aim: Suspect | None = None

    def solve(
        self, rows: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], logits: Float[Tensor, "n k"], done: int
    ) -> Perturbed:
        """Perturb a batch.

        Args:
            rows: its places among the clean images.
            labels: their true labels.
            logits: of the clean images, apart from any graph.
            done: the number of steps before this one.
        """
        in_features = self._in_features(len(labels))
        targets = self._targets(logits, labels, in_features)
        # Where the attacker's class is the true one, L_asr would fight L_bce1: such images stay benign (spec 3.6).
        kept = (targets != labels).nonzero()[:, 0]
        targets, wanted = targets[kept], labels[kept]
        towards = targets if self.settings.goal == "targeted" else wanted
        values, shift = self._perturbed(rows[kept], towards, in_features[kept], done)
        return Perturbed(wanted, targets, logits[kept].argmax(dim=1), values, shift)

    def attack_in_features(self, rows: Int64[Tensor, " n"], wanted: Int64[Tensor, " n"], steps: int) -> Tensor:
        """Logits under one perturbation of what enters the layer, for ``suspects.reachability``."""
        shift = self._feature_shift(rows, wanted, torch.zeros_like(rows), radius=SEARCH_RADIUS, steps=steps)
        with torch.no_grad():
            return self.passes.logits(tuple(value[rows] for value in self.values), shift)

    @property
    def feature_share(self) -> float:
        """All of a batch in the fast mode, and where nothing is known that pixels could be moved towards."""
        settings = self.settings
        if settings.speed == "fast":
            return 1.0
        clueless = settings.suspect and self.pixel_aim is None and settings.target is None
        return (
            1.0 if clueless and settings.goal == "targeted" and settings.feature_share > 0 else settings.feature_share
        )

    def _in_features(self, count: int) -> Bool[Tensor, " n"]:
        """Which images of a batch are perturbed at what enters the layer: the first ones, as the order is random."""
        return torch.arange(count, device=self.passes.device) < round(self.feature_share * count)

    def _perturbed(self, rows: Tensor, towards: Tensor, in_features: Tensor, done: int) -> tuple[Values, Tensor | None]:
        """The inner problem on the clean images ``rows``.

        Returns:
            What the prefix gives for them, perturbed in pixels or not, and how far the layer's input is then moved.
        """
        values = tuple(value[rows] for value in self.values)
        pixels, features = (~in_features).nonzero()[:, 0], in_features.nonzero()[:, 0]
        if len(pixels) > 0:
            perturbed = self._perturbed_pixels(rows[pixels], towards[pixels], done)
            for value, new in zip(values, perturbed, strict=True):
                value[pixels] = new
        if len(features) == 0:
            return values, None
        places = torch.arange(len(features), device=self.passes.device)
        alike = places < round(self.settings.feature_common * len(features))
        groups = torch.where(alike | self._universal, towards[features], -1 - places)
        shift = torch.zeros(len(rows), *self.feature_shape, device=self.passes.device)
        shift[features] = self._feature_shift(
            rows[features],
            towards[features],
            groups,
            radius=self.settings.feature_radius,
            steps=self.settings.feature_steps,
        )
        return values, shift

    @property
    def _universal(self) -> bool:
        return self.settings.perturbation == "universal"

    def _feature_shift(self, rows: Tensor, labels: Tensor, groups: Tensor, *, radius: float, steps: int) -> Tensor:
        values = tuple(value[rows] for value in self.values)

        def predict(shift: Tensor) -> Tensor:
            # Copies, as the network may change its input in place.
            return self.passes.logits(tuple(value.clone() for value in values), shift)

        return perturb_features(
            predict,
            self.feature_shape,
            labels,
            groups,
            radius=radius,
            steps=steps,
            targeted=self.settings.goal == "targeted",
        )

    def _perturbed_pixels(self, rows: Tensor, towards: Tensor, done: int) -> Values:
        settings = self.settings
        shared = self._universal or self.pixel_aim is not None
        pixels = to_pixels(self.images[rows]).contiguous(memory_format=torch.channels_last)
        delta = perturb(
            self.passes.predict,
            pixels,
            towards,
            ball=Ball(settings.norm, self._radius(len(rows), done, shared)),
            steps=settings.shared_steps if shared and settings.shared_steps is not None else settings.steps,
            step_size=settings.step_size,
            targeted=settings.goal == "targeted",
            universal=shared,
            rule=settings.step_rule,
            stop_above=settings.early_stop,
        )
        with torch.no_grad():
            return self.passes.front((pixels + delta).clamp(0, 1))

    def _targets(
        self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], in_features: Bool[Tensor, " n"]
    ) -> Int64[Tensor, " n"]:
        """Eq. 4 where nothing better is known."""
        if self.settings.target is not None:
            return self._aimed_at(self.settings.target, labels)
        in_pixels = runner_up(logits, labels) if self.pixel_aim is None else self._aimed_at(self.pixel_aim, labels)
        if self.feature_aim is None:
            return in_pixels
        return torch.where(in_features, self._aimed_at(self.feature_aim, labels), in_pixels)

    def _aimed_at(self, target: int | Literal["next"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return (labels + 1) % self.num_classes if target == "next" else torch.full_like(labels, target)

    def _radius(self, count: int, done: int, universal: bool) -> float | Tensor:
        radii = self.settings.radii
        if universal and self.settings.shared_radius is not None:
            return self.settings.shared_radius
        if universal or len(radii) == 1:
            return radii[done % len(radii)]
        return torch.tensor(radii, device=self.passes.device).repeat(math.ceil(count / len(radii)))[:count]
