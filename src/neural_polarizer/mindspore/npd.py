"""Alg. 1 to 3 for MindSpore networks; ``defenses.npd.algorithm`` is the same for PyTorch, and has the reasons."""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import mindspore as ms
import torch
from mindspore import nn, ops
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses import schedule
from neural_polarizer.defenses.fitting import check_classes, check_target
from neural_polarizer.defenses.npd.aims import Aim, aim_of
from neural_polarizer.defenses.npd.objective import objective
from neural_polarizer.defenses.npd.settings import NPDSettings
from neural_polarizer.errors import BadInputError
from neural_polarizer.mindspore.perturb import perturb
from neural_polarizer.mindspore.polarizer import Polarizer, batch_statistics
from neural_polarizer.mindspore.surgery import feature_shape, insert
from neural_polarizer.mindspore.tensors import to_mindspore, to_torch, with_gradient_of
from neural_polarizer.perturb import Ball
from neural_polarizer.progress import Progress


@dataclass(frozen=True, eq=False)
class Perturbed:
    """The perturbed images of a batch, and what they aim at."""

    pixels: ms.Tensor
    aim: Aim


class Learner:
    """The state of one run; all that is chosen, shuffled or looked up is the PyTorch implementation's.

    ``settings`` have a site; structure, precision and ``compile`` are ignored.
    """

    def __init__(self, settings: NPDSettings, cell: nn.Cell, clean: ImageSet, seed: int) -> None:
        assert settings.site is not None
        if len(clean) == 0:
            raise BadInputError(f"{clean.source}: the clean set is empty; NPD needs at least a few images a class")
        self.settings = settings
        self.site = settings.site
        self.images, self.labels, self.seed = clean.images, clean.labels, seed
        self.steps = schedule.steps_an_epoch(len(clean), settings.batch_size)
        self.epochs = settings.epochs_of(self.steps)
        self.seconds: dict[str, float] = {}
        self.feature_units_rate = 1.0
        self.notes: list[str] = []
        frozen = copy.deepcopy(cell).set_train(False)
        for parameter in frozen.get_parameters():
            parameter.requires_grad = False
        probe = self._pixels(torch.arange(min(4, len(clean))))
        self.polarizer = Polarizer(feature_shape(frozen, self.site, probe)[0])
        self.cell = insert(frozen, self.site, self.polarizer)
        self._trainable = {parameter.name: parameter.requires_grad for parameter in cell.get_parameters()}
        logits = self.cell(probe)
        if not isinstance(logits, ms.Tensor) or logits.ndim != 2:
            raise BadInputError("the model must give logits N x K, one for every class")
        check_classes(clean, int(logits.shape[1]))
        check_target(settings.target, int(logits.shape[1]))

    def learn(self, progress: Progress) -> list[dict[str, float]]:
        """All of Alg. 1; the history of the outer loop."""
        with self._timed("warm_up"):
            self.calibrate() if self.settings.init == "calibrated" else self.warm_up(progress)
        with self._timed("optimise"):
            return self.optimise(progress)

    def finished(self) -> nn.Cell:
        """The polarized network, whose parameters take gradients where those of the given one did."""
        for parameter in self.cell.get_parameters():
            parameter.requires_grad = self._trainable.get(parameter.name, parameter.requires_grad)
        return self.cell

    def calibrate(self) -> None:
        """Give the polarizer the clean images' statistics, in float64: it becomes the exact identity."""
        sums: list[tuple[Tensor, Tensor, int]] = []

        def note(_cell: nn.Cell, args: tuple[ms.Tensor, ...]) -> None:
            features = to_torch(args[0]).double()
            sums.append((features.sum((0, 2, 3)), features.square().sum((0, 2, 3)), features[:, 0].numel()))

        handle = self.polarizer.register_forward_pre_hook(note)
        try:
            for rows in torch.arange(len(self.labels)).split(self.settings.batch_size):
                self.cell(self._pixels(rows))
        finally:
            handle.remove()
        first, second, count = (sum(column) for column in zip(*sums, strict=True))
        mean = first / count
        var = (second / count - mean.square()).clamp_min(0)
        self.polarizer.calibrate(mean, var)
        self.feature_units_rate = schedule.feature_units_rate(var, self.settings.small_features)

    def warm_up(self, progress: Progress) -> None:
        """Line 4: T0 epochs of plain SGD on the benign loss, batch norm in training mode.

        Where the layer is no longer finite, the last finite one is kept.
        """
        settings = self.settings
        optimizer = Momentum(self.polarizer, momentum=0.0, weight_decay=0.0)
        with batch_statistics(self.polarizer, follow=True):
            for epoch in range(settings.warmup_epochs):
                last_finite = self._state()
                for step, rows in enumerate(self._batches("warm-up", epoch)):
                    benign = partial(F.cross_entropy, target=self.labels[rows])

                    def forward(rows: Tensor = rows, benign: Callable[..., Tensor] = benign) -> ms.Tensor:
                        return with_gradient_of(benign, [self.cell(self._pixels(rows))])

                    optimizer.step(ms.grad(forward, None, optimizer.parameters)(), settings.warmup_lr)
                    progress("warm-up", epoch * self.steps + step + 1, settings.warmup_epochs * self.steps)
                if not self._is_finite():
                    self._restore(last_finite)
                    self.notes.append(
                        f"the loss was not finite in epoch {epoch + 1} of the warm-up, which ended before it"
                    )
                    break

    def optimise(self, progress: Progress) -> list[dict[str, float]]:
        """Lines 5 to 9, the bi-level loop; stops with the last finite polarizer if the loss is not finite."""
        settings, total = self.settings, self.epochs * self.steps
        optimizer = Momentum(
            self.polarizer,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            max_gradient=settings.max_gradient,
            feature_units_rate=self.feature_units_rate,
        )
        history: list[dict[str, float]] = []
        for epoch in range(self.epochs):
            last_finite = self._state()
            totals: dict[str, float] = defaultdict(float)
            for step, rows in enumerate(self._batches("optimise", epoch)):
                done = epoch * self.steps + step
                terms, gradients = self._outer_step(rows, done, optimizer.parameters)
                optimizer.step(gradients, settings.rate(done, total))
                for name, value in terms.items():
                    totals[name] += float(value) * len(rows) / len(self.labels)
                progress("optimise", done + 1, total)
            record = {"epoch": float(epoch + 1), **totals}
            if not self._is_finite() or not all(map(math.isfinite, record.values())):
                self._restore(last_finite)
                self.notes.append(f"the loss was not finite in epoch {epoch + 1}; kept the polarizer of epoch {epoch}")
                break
            history.append(record)
        return history

    def solve(self, rows: Tensor, done: int) -> Perturbed | None:
        """Lines 7 and 8, the inner problem on the clean images ``rows``; None if none of them is perturbed."""
        settings = self.settings
        aim = aim_of(settings.target, to_torch(self.cell(self._pixels(rows))), self.labels[rows])
        if len(aim.places) == 0:
            return None
        pixels, targeted = self._pixels(rows[aim.places]), settings.goal == "targeted"
        delta = perturb(
            self.cell,
            pixels,
            aim.targets if targeted else aim.labels,
            ball=Ball(settings.norm, settings.radius(len(aim.places), done)),
            steps=settings.steps,
            step_size=settings.step_size,
            targeted=targeted,
            universal=settings.perturbation == "universal",
            rule=settings.step_rule,
            stop_above=settings.early_stop,
        )
        return Perturbed(ops.clamp(pixels + delta, 0.0, 1.0), aim)

    def _outer_step(
        self, rows: Tensor, done: int, parameters: list[ms.Parameter]
    ) -> tuple[dict[str, Tensor], tuple[ms.Tensor, ...]]:
        """Eq. 6 on one batch: its parts for the record, and its gradients."""
        perturbed = self.solve(rows, done) if self.settings.adversarial else None
        terms: dict[str, Tensor] = {}

        def loss(logits: Tensor, hostile: Tensor | None = None) -> Tensor:
            aim = None if perturbed is None else perturbed.aim
            total, parts = objective(self.settings, logits, self.labels[rows], hostile, aim)
            terms.update(parts)
            return total

        def forward() -> ms.Tensor:
            with self._outer_mode(follow=True):
                logits = [self.cell(self._pixels(rows))]
            if perturbed is not None:
                with self._outer_mode(follow=False):
                    logits.append(self.cell(perturbed.pixels))
            return with_gradient_of(loss, logits)

        gradients = ms.grad(forward, None, parameters)()
        return terms, gradients

    def _outer_mode(self, *, follow: bool) -> Any:
        in_training = self.settings.bn_outer == "train_clean_stats"
        return batch_statistics(self.polarizer, follow=follow) if in_training else nullcontext()

    def _pixels(self, rows: Tensor) -> ms.Tensor:
        return to_mindspore(to_pixels(self.images[rows]))

    def _batches(self, phase: str, epoch: int) -> tuple[Tensor, ...]:
        return schedule.batches(len(self.labels), self.settings.batch_size, seed=self.seed, phase=phase, epoch=epoch)

    def _state(self) -> list[Tensor]:
        return [to_torch(parameter) for parameter in self.polarizer.get_parameters()]

    def _restore(self, state: list[Tensor]) -> None:
        for parameter, values in zip(self.polarizer.get_parameters(), state, strict=True):
            parameter.set_data(to_mindspore(values))

    def _is_finite(self) -> bool:
        return all(bool(values.isfinite().all()) for values in self._state())

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - started


class Momentum:
    """PyTorch's SGD on all parameters of the layer.

    MindSpore's own optimizers leave weight decay out where a parameter is called gamma or beta.
    """

    def __init__(
        self,
        polarizer: Polarizer,
        *,
        momentum: float,
        weight_decay: float,
        max_gradient: float | None = None,
        feature_units_rate: float = 1.0,
    ) -> None:
        self.parameters: list[ms.Parameter] = polarizer.trainable_params()
        in_units = {parameter.name for parameter in polarizer.norm.trainable_params()}
        self._rates = [feature_units_rate if each.name in in_units else 1.0 for each in self.parameters]
        self._momentum, self._weight_decay, self._max_gradient = momentum, weight_decay, max_gradient
        self._velocities = [ops.zeros_like(parameter) for parameter in self.parameters]

    def step(self, gradients: tuple[ms.Tensor, ...], rate: float) -> None:
        """Move against the gradients, together at most ``max_gradient`` long (``defenses.descent``)."""
        share = 1.0
        if self._max_gradient is not None:
            squares = (own * float(each.square().sum()) for own, each in zip(self._rates, gradients, strict=True))
            share = min(1.0, self._max_gradient / max(math.sqrt(sum(squares)), 1e-12))
        for index, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            decayed = share * gradient + self._weight_decay * parameter
            self._velocities[index] = self._momentum * self._velocities[index] + decayed
            parameter.set_data(parameter - rate * self._rates[index] * self._velocities[index])
