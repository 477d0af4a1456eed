"""Neural Polarizer Defense: NPD, NPD-TP, NPD-TU and the untargeted NPD-UP, NPD-UU (paper Alg. 1 to 3; spec 3)."""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses import npd_schedule
from neural_polarizer.defenses.base import Audit, Purified
from neural_polarizer.defenses.npd_aims import Aims, check_classes, find_aims
from neural_polarizer.defenses.npd_inner import InnerProblem, Passes, Perturbed, Values
from neural_polarizer.defenses.npd_outer import outer_loss
from neural_polarizer.defenses.npd_settings import NeuralPolarizerSettings
from neural_polarizer.errors import BadInputError
from neural_polarizer.polarizer import Polarizer, batch_statistics
from neural_polarizer.rng import stream
from neural_polarizer.sites import candidates, choose_site, features_at
from neural_polarizer.structures import make_polarizer
from neural_polarizer.surgery import Cut, Site, cut, insert
from neural_polarizer.suspects import SharedAttack, Suspect, attack_in_pixels
from neural_polarizer.train import Progress, silent


@dataclass(frozen=True, kw_only=True)
class NeuralPolarizer(NeuralPolarizerSettings):
    """Learn one inserted linear layer that takes the backdoor out of a frozen network.

    Source: Zhu et al., "Neural Polarizer", NeurIPS 2023, Alg. 1 (NPD), 2 (NPD-TU), 3 (NPD-TP), section 4.3 (-UU,
    -UP); spec 3.  Departures: the defaults are those of docs/defaults.md; ``defenses.presets`` has the paper's own.
    """

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified:
        """Learn the polarizer for ``model`` from ``clean``; ``model`` is untouched.

        Args:
            model: float pixels in [0, 1] to logits ``(n, k)``.
            clean: the defender's images.
            seed: fixes the order of the batches, the images that the suspect is found with, and the first weights of
                structures that need random ones: the only randomness.
            device: where to compute.
            progress: told about every step.

        Raises:
            BadInputError: no images, an unknown or unusable site, or a class count that does not fit.
        """
        started = time.perf_counter()
        learner = _Learner(self, model, clean, torch.device(device), seed)
        cached = time.perf_counter()
        if self.init == "calibrated":
            learner.calibrate()
        else:
            learner.warm_up(seed, progress)
        warm = time.perf_counter()
        learner.suspect(seed)
        suspected = time.perf_counter()
        history = learner.optimise(seed, progress)
        done = time.perf_counter()
        polarized = learner.model.to("cpu").eval().requires_grad_(True)
        seconds = {"features": cached - started, "warm_up": warm - cached, "suspect": suspected - warm}
        seconds["optimise"] = done - suspected
        return Purified(
            polarized,
            learner.polarizer,
            str(learner.site),
            history,
            seconds,
            tuple(learner.notes),
            learner.suspected,
            learner.audit,
            learner.site_reason,
        )


@dataclass(frozen=True, eq=False)
class SharedAttacks:
    """Perturbations that many images have in common, and the labels of the images that they are made for.

    Args:
        pixels: of a radius in L2 to an attack on pixels.
        features: the attack on what enters the layer.
        labels: of the clean images, on the device.
        num_classes: K.
    """

    pixels: Callable[[float], SharedAttack]
    features: SharedAttack
    labels: Tensor
    num_classes: int


def shared_attacks(
    model: nn.Module,
    clean: ImageSet,
    *,
    settings: NeuralPolarizerSettings,
    seed: int,
    device: torch.device | str = "cpu",
) -> SharedAttacks:
    """The attacks that NPD looks for a suspect with, on the network as it is: the layer is still the identity.

    Raises:
        BadInputError: as ``NeuralPolarizer.repair``.
    """
    learner = _Learner(settings, model, clean, torch.device(device), seed)
    learner.calibrate()
    passes, images = learner.passes, learner.images
    return SharedAttacks(
        lambda radius: attack_in_pixels(passes.predict, images, radius=radius, fresh=False),
        learner.inner.attack_in_features,
        learner.labels,
        learner.inner.aims.num_classes,
    )


class _Learner:
    """The state of one run: the polarized copy, its two parts, and the clean images' cached prefix values."""

    def __init__(
        self, settings: NeuralPolarizerSettings, model: nn.Module, clean: ImageSet, device: torch.device, seed: int
    ) -> None:
        if len(clean) == 0:
            raise BadInputError(f"{clean.source}: the clean set is empty; NPD needs at least a few images a class")
        self.settings = settings
        self.device = device
        self.images = clean.images.to(device)
        self.labels = clean.labels.to(device)
        self.steps = npd_schedule.steps_an_epoch(len(clean), settings.batch_size)
        self.epochs = npd_schedule.epochs(settings, self.steps)
        self.feature_units_rate = 1.0
        self.notes: list[str] = []
        frozen = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        probe = to_pixels(self.images[:4])
        self.site_reason: str | None = None
        if settings.site is None:
            choice = choose_site(candidates(frozen, probe))
            self.site, self.site_reason = choice.site, choice.reason
        else:
            self.site = Site.parse(settings.site)
        features = features_at(frozen, self.site, probe)
        layer = make_polarizer(settings.structure, features, stream(seed, "structure"))
        self.polarizer = layer.to(self.device).eval()
        self.model = insert(frozen, self.site, self.polarizer).to(memory_format=torch.channels_last)
        num_classes = self._num_classes(probe)
        check_classes(settings, clean, num_classes)
        prefix, tail = self._cut(probe)
        self.passes = Passes(settings, self.polarizer, prefix, tail, device)
        self.values = self._cached()
        self.inner = InnerProblem(Aims(settings, num_classes), self.passes, self.images, self.values, features.shape)
        self.suspected: Suspect | None = None
        self.audit: Audit | None = None

    @torch.no_grad()
    def _num_classes(self, probe: Tensor) -> int:
        output = self.model(probe)
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise BadInputError("the model must give logits N x K, one for every class")
        return int(output.shape[1])

    def _cut(self, probe: Tensor) -> tuple[Callable[[Tensor], Values], Callable[..., Tensor]]:
        parts = cut(self.model, self.polarizer, probe)
        if isinstance(parts, Cut):
            return parts.prefix, parts.tail
        self.notes.append(f"full forward passes instead of cached features: {parts}")
        return lambda pixels: (pixels,), self.model

    @torch.no_grad()
    def _cached(self) -> Values:
        """What the frozen prefix gives for every clean image, computed once: there is no augmentation."""
        parts = [
            self.passes.front(to_pixels(images).contiguous(memory_format=torch.channels_last))
            for images in self.images.split(self.settings.batch_size)
        ]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _batches(self, seed: int, phase: str, epoch: int) -> Iterator[Tensor]:
        for rows in npd_schedule.batches(
            len(self.labels), self.settings.batch_size, seed=seed, phase=phase, epoch=epoch
        ):
            yield rows.to(self.device)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Give the polarizer the clean images' statistics, with which it is the exact identity if it ever is."""
        mean, var = self._statistics(self.polarizer)
        self.polarizer.calibrate(mean, var)
        self.feature_units_rate = npd_schedule.feature_units_rate(var)
        for norm in self.polarizer.inner_norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            for statistic, values in zip((norm.running_mean, norm.running_var), self._statistics(norm), strict=True):
                statistic.copy_(values)

    def _statistics(self, layer: nn.Module) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and variance, in float64, of each channel that enters ``layer`` for the clean images."""
        sums: list[tuple[Tensor, Tensor, int]] = []

        def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0].double()
            axis = features.ndim - 1 if isinstance(layer, Polarizer) and layer.channels_last else 1
            others = [each for each in range(features.ndim) if each != axis]
            count = features.numel() // features.shape[axis]
            sums.append((features.sum(others), features.square().sum(others), count))

        handle = layer.register_forward_pre_hook(note)
        try:
            for start in range(0, len(self.labels), self.settings.batch_size):
                rows = slice(start, start + self.settings.batch_size)
                # A copy, as the network may change its input in place.
                self.passes.logits(tuple(value[rows].clone() for value in self.values))
        finally:
            handle.remove()
        first, second, count = (sum(column) for column in zip(*sums, strict=True))
        mean = first / count
        return mean, (second / count - mean.square()).clamp_min(0)

    def warm_up(self, seed: int, progress: Progress) -> None:
        """T0 epochs of plain SGD on the benign loss, batch norm in training mode (spec 3.4).

        Where the loss is no longer finite, the last finite polarizer is kept.
        """
        total = self.settings.warmup_epochs * self.steps
        optimizer = torch.optim.SGD(self.polarizer.parameters(), lr=self.settings.warmup_lr)
        self.polarizer.train()
        for epoch in range(self.settings.warmup_epochs):
            last_finite = copy.deepcopy(self.polarizer.state_dict())
            for step, rows in enumerate(self._batches(seed, "warm-up", epoch)):
                logits = self.passes.logits(tuple(value[rows] for value in self.values))
                loss = F.cross_entropy(logits, self.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress("warm-up", epoch * self.steps + step + 1, total)
            if not self._is_finite():
                self.polarizer.load_state_dict(last_finite)
                self.notes.append(f"the loss was not finite in epoch {epoch + 1} of the warm-up, which ended before it")
                break
        self.polarizer.eval()

    def suspect(self, seed: int) -> None:
        """Find the labels that perturbations should aim at, if nobody has told them."""
        self.inner.aims, self.suspected, self.audit = find_aims(
            self.inner.aims,
            self.labels,
            in_pixels=lambda cells: attack_in_pixels(self.passes.predict, self.images, cells=cells),
            in_features=self.inner.attack_in_features,
            seed=seed,
        )

    def optimise(self, seed: int, progress: Progress) -> list[dict[str, float]]:
        """The bi-level loop (Alg. 1); stops with the last finite polarizer if the loss is not finite."""
        settings, steps = self.settings, self.steps
        in_units = set(self.polarizer.in_feature_units)
        rates = [self.feature_units_rate if each in in_units else 1.0 for each in self.polarizer.parameters()]
        optimizer = torch.optim.SGD(
            [{"params": [each]} for each in self.polarizer.parameters()],
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        history: list[dict[str, float]] = []
        for epoch in range(self.epochs):
            last_finite = copy.deepcopy(self.polarizer.state_dict())
            totals: dict[str, Tensor | float] = defaultdict(float)
            for step, rows in enumerate(self._batches(seed, "optimise", epoch)):
                done = epoch * steps + step
                lr = npd_schedule.learning_rate(settings, done, self.epochs * steps)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * lr
                loss, terms = self._outer_loss(rows, done)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for name, value in terms.items():
                    totals[name] += value * len(rows) / len(self.labels)
                progress("optimise", done + 1, self.epochs * steps)
            record = {"epoch": float(epoch + 1), **{name: float(value) for name, value in totals.items()}}
            if not self._is_finite() or not all(map(math.isfinite, record.values())):
                self.polarizer.load_state_dict(last_finite)
                self.notes.append(f"the loss was not finite in epoch {epoch + 1}; kept the polarizer of epoch {epoch}")
                break
            history.append(record)
        return history

    def _is_finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.polarizer.state_dict().values())

    def _outer_loss(self, rows: Tensor, done: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 6 on one batch, and its parts for the record."""
        settings = self.settings
        labels = self.labels[rows]
        values = tuple(value[rows] for value in self.values)
        logits = self.passes.logits(values)
        perturbed = self.inner.solve(rows, labels, logits.detach(), done) if settings.adversarial else None
        if settings.bn_outer == "train_clean_stats":
            with batch_statistics(self.polarizer, follow=True):
                logits = self.passes.logits(values)
        if perturbed is None:
            return outer_loss(settings, logits, labels, None, None)
        return outer_loss(settings, logits, labels, self._hostile_logits(perturbed), perturbed.aim)

    def _hostile_logits(self, perturbed: Perturbed) -> Tensor:
        in_training = self.settings.bn_outer == "train_clean_stats"
        with batch_statistics(self.polarizer, follow=False) if in_training else nullcontext():
            return self.passes.logits(perturbed.values, perturbed.shift)
