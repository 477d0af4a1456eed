"""The inner problem of NPD: how the images of a batch are perturbed (eqs. 5, 7, 8, 10)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.npd_aims import Aim, Aims
from neural_polarizer.defenses.npd_settings import NeuralPolarizerSettings
from neural_polarizer.perturb import Ball, each_length, perturb, perturb_features
from neural_polarizer.polarizer import Polarizer
from neural_polarizer.suspects import Effort

SEARCH_RADIUS = 0.2
"""Of the perturbations of features that a suspect is looked for with, in the units of ``feature_radius``."""

Values = tuple[Tensor, ...]


@contextmanager
def shifted(polarizer: Polarizer, shift: Float[Tensor, "n ..."]) -> Iterator[None]:
    """While it lasts, the layer's input is moved by ``shift``, in units of each image's own norm there."""

    def add(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0] + each_length(args[0].detach().float()) * shift,)

    handle = polarizer.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


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
        aim: which these are, and what they are perturbed towards.
        values: what the prefix gives for them, perturbed in pixels or not.
        shift: how far the layer's input is moved, or None.
    """

    aim: Aim
    values: Values
    shift: Float[Tensor, "n ..."] | None


class InnerProblem:
    """The perturbations of a run.

    Args:
        aims: of the perturbations; others may take their place once suspects are known.
        passes: through the polarized network.
        images: all clean ones.
        values: what the prefix gives for them.
        feature_shape: of what enters the layer for one image.
    """

    def __init__(
        self,
        aims: Aims,
        passes: Passes,
        images: UInt8[Tensor, "n c h w"],
        values: Values,
        feature_shape: tuple[int, ...],
    ) -> None:
        self.aims = aims
        self.passes = passes
        self.images = images
        self.values = values
        self.feature_shape = feature_shape
        self._settings = aims.settings

    def solve(
        self, rows: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], logits: Float[Tensor, "n k"], done: int
    ) -> Perturbed | None:
        """Perturb a batch.

        Args:
            rows: its places among the clean images.
            labels: their true labels.
            logits: of the clean images, apart from any graph.
            done: the number of steps before this one.

        Returns:
            None if no image of the batch is perturbed.
        """
        aim = self.aims.of_batch(logits, labels)
        return Perturbed(aim, *self._perturbed(rows[aim.places], aim, done)) if len(aim.places) > 0 else None

    def attack_in_features(self, rows: Int64[Tensor, " n"], wanted: Int64[Tensor, " n"], effort: Effort) -> Tensor:
        """A ``suspects.SharedAttack`` on what enters the layer; all its steps see the same images."""
        rows, wanted = rows[: effort.samples], wanted[: effort.samples]
        shift = self._feature_shift(rows, wanted, torch.zeros_like(rows), radius=SEARCH_RADIUS, steps=effort.steps)
        with torch.no_grad():
            return self.passes.logits(tuple(value[rows] for value in self.values), shift)

    def _perturbed(self, rows: Tensor, aim: Aim, done: int) -> tuple[Values, Tensor | None]:
        """The inner problem on the clean images ``rows``.

        Returns:
            What the prefix gives for them, perturbed in pixels or not, and how far the layer's input is then moved.
        """
        values = tuple(value[rows] for value in self.values)
        pixels, features = (~aim.in_features).nonzero()[:, 0], aim.in_features.nonzero()[:, 0]
        if len(pixels) > 0:
            perturbed = self._perturbed_pixels(rows[pixels], aim.towards[pixels], done)
            for value, new in zip(values, perturbed, strict=True):
                value[pixels] = new
        if len(features) == 0:
            return values, None
        towards, settings = aim.towards[features], self._settings
        shift = torch.zeros(len(rows), *self.feature_shape, device=self.passes.device)
        shift[features] = self._feature_shift(
            rows[features],
            towards,
            self.aims.groups(towards),
            radius=settings.feature_radius,
            steps=settings.feature_steps,
        )
        return values, shift

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
            targeted=self._settings.goal == "targeted",
        )

    def _perturbed_pixels(self, rows: Tensor, towards: Tensor, done: int) -> Values:
        settings, radius = self._settings, self.aims.radius(len(rows), done)
        pixels = to_pixels(self.images[rows]).contiguous(memory_format=torch.channels_last)
        delta = perturb(
            self.passes.predict,
            pixels,
            towards,
            ball=Ball(settings.norm, radius),
            steps=self.aims.steps,
            step_size=settings.step_size,
            targeted=settings.goal == "targeted",
            universal=self.aims.shared,
            rule=settings.step_rule,
            stop_above=settings.early_stop,
            cells=self.aims.cells,
        )
        with torch.no_grad():
            return self.passes.front((pixels + delta).clamp(0, 1))
