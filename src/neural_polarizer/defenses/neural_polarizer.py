"""Neural Polarizer Defense: NPD, NPD-TP, NPD-TU and the untargeted NPD-UP, NPD-UU (paper Alg. 1 to 3; spec 3)."""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Audit, Purified
from neural_polarizer.defenses.npd_audit import reachability_audit
from neural_polarizer.defenses.npd_settings import MAX_EPOCHS, MIN_EPOCHS, MIN_STEPS, NeuralPolarizerSettings
from neural_polarizer.errors import BadInputError
from neural_polarizer.losses import asr_loss, boosted_cross_entropy, runner_up
from neural_polarizer.perturb import Ball, perturb, perturb_features
from neural_polarizer.polarizer import Polarizer, shifted
from neural_polarizer.rng import stream
from neural_polarizer.surgery import Cut, Site, cut, default_site, feature_channels, insert
from neural_polarizer.suspects import (
    Effort,
    Suspect,
    aim_of_pixels,
    attack_in_pixels,
    easiest,
    reachability,
    standing_out,
)
from neural_polarizer.train import Progress, silent

SEARCH_FIRST, SEARCH_IN_PIXELS, SEARCH_IN_FEATURES = Effort(16, 3), Effort(32, 8), Effort(256, 8)
"""What ``_Learner.suspect`` spends on each aim."""

SEARCH_RADIUS = 0.2
"""Of its perturbations of features, in the units of ``feature_radius``."""

Values = tuple[Tensor, ...]


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
            seed: fixes the order of the batches and the images that the suspect is found with, the only randomness.
            device: where to compute.
            progress: told about every step.

        Raises:
            BadInputError: no images, an unknown or unusable site, or a class count that does not fit.
        """
        started = time.perf_counter()
        learner = _Learner(self, model, clean, torch.device(device))
        learner.cache()
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
        )


class _Learner:
    """The state of one run: the polarized copy, its two parts, and the clean images' cached prefix values."""

    def __init__(
        self, settings: NeuralPolarizerSettings, model: nn.Module, clean: ImageSet, device: torch.device
    ) -> None:
        if len(clean) == 0:
            raise BadInputError(f"{clean.source}: the clean set is empty; NPD needs at least a few images a class")
        self.settings = settings
        self.device = device
        self.images = clean.images.to(device)
        self.labels = clean.labels.to(device)
        self.steps = math.ceil(len(clean) / settings.batch_size)
        if self.steps > 1 and len(clean) % settings.batch_size == 1:
            self.steps -= 1  # one value a channel is too few for batch statistics: it joins the batch before
        self.notes: list[str] = []
        frozen = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        probe = to_pixels(self.images[:4])
        self.site = default_site(frozen, probe) if settings.site is None else Site.parse(settings.site)
        channels = feature_channels(frozen, self.site, probe)
        self.polarizer = Polarizer(channels).to(device).eval()
        self.model = insert(frozen, self.site, self.polarizer).to(memory_format=torch.channels_last)
        self.prefix, self.tail = self._cut(probe)
        self.predict = torch.compile(self._predict) if settings.compile else self._predict
        entered: list[Tensor] = []
        handle = self.polarizer.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        with torch.no_grad():
            output = self.model(probe)
        handle.remove()
        self.feature_shape = tuple(entered[0].shape[1:])
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise BadInputError("the model must give logits N x K, one for every class")
        self.num_classes = int(output.shape[1])
        self._check_classes(clean)
        self.values: Values = ()
        self.suspected: Suspect | None = None
        self.pixel_aim: Suspect | None = None
        self.feature_aim: Suspect | None = None
        self.audit: Audit | None = None

    def _cut(self, probe: Tensor) -> tuple[Callable[[Tensor], Values], Callable[..., Tensor]]:
        parts = cut(self.model, self.polarizer, probe)
        if isinstance(parts, Cut):
            return parts.prefix, parts.tail
        self.notes.append(f"full forward passes instead of cached features: {parts}")
        return lambda pixels: (pixels,), self.model

    def _check_classes(self, clean: ImageSet) -> None:
        highest = int(clean.labels.max())
        if highest >= self.num_classes:
            raise BadInputError(
                f"{clean.source}: has label {highest}, but the model knows {self.num_classes} classes (0 to "
                f"{self.num_classes - 1}); is this the right data set?"
            )
        target = self.settings.target
        if isinstance(target, int) and not 0 <= target < self.num_classes:
            raise BadInputError(f"the target class must lie in 0..{self.num_classes - 1}, got {target}")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _logits(self, values: Values, shift: Tensor | None = None) -> Float[Tensor, "n k"]:
        moved = nullcontext() if shift is None else shifted(self.polarizer, shift)
        with self._autocast(), moved:
            return self.tail(*values).float()

    def _predict(self, pixels: Tensor) -> Float[Tensor, "n k"]:
        with self._autocast():
            return self.tail(*self.prefix(pixels)).float()

    @torch.no_grad()
    def cache(self) -> None:
        """Compute what the frozen prefix gives for every clean image, once: there is no augmentation."""
        parts = []
        for images in self.images.split(self.settings.batch_size):
            with self._autocast():
                parts.append(self.prefix(to_pixels(images).contiguous(memory_format=torch.channels_last)))
        self.values = tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _batches(self, seed: int, phase: str, epoch: int) -> Iterator[Tensor]:
        order = torch.randperm(len(self.labels), generator=stream(seed, phase, epoch)).to(self.device)
        cuts = [self.settings.batch_size * step for step in range(1, self.steps)]
        yield from order.tensor_split(cuts)

    @property
    def epochs(self) -> int:
        """T, chosen by the number of images if the settings leave it open."""
        if self.settings.epochs is not None:
            return self.settings.epochs
        return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / self.steps)))

    @torch.no_grad()
    def calibrate(self) -> None:
        """Make the polarizer the exact identity with the clean images' statistics."""
        sums: list[tuple[Tensor, Tensor, int]] = []

        def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0].double()
            sums.append((features.sum((0, 2, 3)), features.square().sum((0, 2, 3)), features[:, 0].numel()))

        handle = self.polarizer.register_forward_pre_hook(note)
        try:
            for start in range(0, len(self.labels), self.settings.batch_size):
                rows = slice(start, start + self.settings.batch_size)
                # A copy, as the network may change its input in place.
                self._logits(tuple(value[rows].clone() for value in self.values))
        finally:
            handle.remove()
        first, second, count = (sum(column) for column in zip(*sums, strict=True))
        mean = first / count
        self.polarizer.calibrate(mean, (second / count - mean.square()).clamp_min(0))

    def warm_up(self, seed: int, progress: Progress) -> None:
        """T0 epochs of plain SGD on the benign loss, batch norm in training mode (spec 3.4)."""
        total = self.settings.warmup_epochs * self.steps
        optimizer = torch.optim.SGD(self.polarizer.parameters(), lr=self.settings.warmup_lr)
        self.polarizer.train()
        for epoch in range(self.settings.warmup_epochs):
            for step, rows in enumerate(self._batches(seed, "warm-up", epoch)):
                logits = self._logits(tuple(value[rows] for value in self.values))
                loss = F.cross_entropy(logits, self.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress("warm-up", epoch * self.steps + step + 1, total)
        self.polarizer.eval()

    def suspect(self, seed: int) -> None:
        """Find the labels that perturbations should aim at, if nobody has told them."""
        settings = self.settings
        if settings.goal == "untargeted" or settings.target is not None:
            return
        if not settings.suspect and self._feature_share == 0:
            return
        search = partial(reachability, labels=self.labels, num_classes=self.num_classes)
        in_features = search(self._attack_in_features, generator=stream(seed, "aim"), effort=SEARCH_IN_FEATURES)
        margins = {"features": in_features}
        if settings.suspect:
            attack, generator = attack_in_pixels(self.predict, self.images), stream(seed, "suspect")
            in_pixels = search(attack, generator=generator, effort=SEARCH_IN_PIXELS, first=SEARCH_FIRST)
            margins = {"pixels": in_pixels, "features": in_features}
            self.suspected = standing_out(in_pixels, in_features)
            self.pixel_aim = aim_of_pixels(in_pixels, in_features)
        self.feature_aim = easiest(in_features) if self.pixel_aim is None else self.pixel_aim
        self.audit = reachability_audit(margins, self.suspected)

    def _attack_in_features(self, rows: Tensor, wanted: Tensor, steps: int) -> Tensor:
        shift = self._feature_shift(rows, wanted, torch.zeros_like(rows), radius=SEARCH_RADIUS, steps=steps)
        with torch.no_grad():
            return self._logits(tuple(value[rows] for value in self.values), shift)

    def optimise(self, seed: int, progress: Progress) -> list[dict[str, float]]:
        """The bi-level loop (Alg. 1); stops with the last finite polarizer if the loss is not finite."""
        settings, steps = self.settings, self.steps
        optimizer = torch.optim.SGD(
            self.polarizer.parameters(),
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
                if settings.lr_policy == "cosine":
                    rate = settings.lr * 0.5 * (1 + math.cos(math.pi * done / (self.epochs * steps)))
                    optimizer.param_groups[0]["lr"] = rate
                loss, terms = self._outer_loss(rows, done)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for name, value in terms.items():
                    totals[name] += value * len(rows) / len(self.labels)
                progress("optimise", done + 1, self.epochs * steps)
            record = {"epoch": float(epoch + 1), **{name: float(value) for name, value in totals.items()}}
            finite = all(bool(tensor.isfinite().all()) for tensor in self.polarizer.state_dict().values())
            if not finite or not all(map(math.isfinite, record.values())):
                self.polarizer.load_state_dict(last_finite)
                self.notes.append(f"the loss was not finite in epoch {epoch + 1}; kept the polarizer of epoch {epoch}")
                break
            history.append(record)
        return history

    def _outer_loss(self, rows: Tensor, done: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 6 on one batch, and its parts for the record."""
        settings = self.settings
        labels = self.labels[rows]
        values = tuple(value[rows] for value in self.values)
        logits = self._logits(values)
        in_features = self._in_features(len(labels))
        targets = self._targets(logits.detach(), labels, in_features)
        # Where the attacker's class is the true one, L_asr would fight L_bce1: such images stay benign (spec 3.6).
        kept = (targets != labels).nonzero()[:, 0]
        targets, wanted, predicted = targets[kept], labels[kept], logits.detach()[kept].argmax(dim=1)
        towards = targets if settings.goal == "targeted" else wanted
        perturbed = self._perturbed(rows[kept], towards, in_features[kept], done)
        if settings.bn_outer == "train_clean_stats":
            logits, adversarial = self._train_mode_logits(values, perturbed)
        else:
            adversarial = self._logits(*perturbed)
        if settings.goal == "untargeted":
            targets = runner_up(adversarial.detach(), wanted)
        benign = F.cross_entropy(logits, labels)
        terms = {"loss_benign": benign, "clean_accuracy": (logits.argmax(dim=1) == labels).float().mean()}
        loss = settings.benign_weight * benign
        if len(kept) > 0:
            asr = asr_loss(adversarial, targets, settings.loss_form)
            shown = predicted if settings.bce_label == "predicted" else None
            bce = boosted_cross_entropy(adversarial, wanted, settings.loss_form, shown)
            loss = loss + settings.asr_weight * asr + settings.bce_weight * bce
            fooled = (adversarial.argmax(dim=1) == targets).float().mean()
            terms |= {"loss_asr": asr, "loss_bce": bce, "surrogate_success": fooled}
        return loss, {name: value.detach() for name, value in {"loss": loss, **terms}.items()}

    @property
    def _feature_share(self) -> float:
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
        return torch.arange(count, device=self.device) < round(self._feature_share * count)

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
        places = torch.arange(len(features), device=self.device)
        alike = places < round(self.settings.feature_common * len(features))
        groups = torch.where(alike | self._universal, towards[features], -1 - places)
        shift = torch.zeros(len(rows), *self.feature_shape, device=self.device)
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
            return self._logits(tuple(value.clone() for value in values), shift)  # as in ``calibrate``

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
            self.predict,
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
        with torch.no_grad(), self._autocast():
            return self.prefix((pixels + delta).clamp(0, 1))

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
        return torch.tensor(radii, device=self.device).repeat(math.ceil(count / len(radii)))[:count]

    def _train_mode_logits(self, clean: Values, perturbed: tuple[Values, Tensor | None]) -> tuple[Tensor, Tensor]:
        """Batch statistics for both forwards; only the clean one moves the running statistics."""
        norm = self.polarizer.norm
        momentum = norm.momentum
        norm.train()
        logits = self._logits(clean)
        norm.momentum = 0.0
        adversarial = self._logits(*perturbed)
        norm.momentum = momentum
        norm.eval()
        return logits, adversarial
