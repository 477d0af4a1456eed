"""Neural Polarizer Defense: NPD, NPD-TP, NPD-TU and the untargeted NPD-UP, NPD-UU (paper Alg. 1 to 3; spec 3)."""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Audit, Purified
from neural_polarizer.defenses.npd_audit import reachability_audit
from neural_polarizer.defenses.npd_fast import Carried
from neural_polarizer.defenses.npd_settings import MAX_EPOCHS, MIN_EPOCHS, MIN_STEPS, NeuralPolarizerSettings
from neural_polarizer.errors import BadInputError
from neural_polarizer.losses import asr_loss, boosted_cross_entropy, runner_up
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.polarizer import Polarizer
from neural_polarizer.rng import stream
from neural_polarizer.surgery import Cut, Site, cut, default_site, feature_channels, insert
from neural_polarizer.suspects import Suspect, most_reachable, quick_reachability, reachability
from neural_polarizer.train import Progress, silent

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
        with torch.no_grad():
            output = self.model(probe)
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise BadInputError("the model must give logits N x K, one for every class")
        self.num_classes = int(output.shape[1])
        self._check_classes(clean)
        self.values: Values = ()
        self.carried: Carried | None = None
        if settings.speed == "fast":
            self.carried = Carried(
                self.images,
                step_size=settings.step_size,
                targeted=settings.goal == "targeted",
                rule=settings.step_rule,
                first_steps=self._inner_steps(universal=True),
            )
        self.suspected: Suspect | None = None
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

    def _logits(self, values: Values) -> Float[Tensor, "n k"]:
        with self._autocast():
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
        epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / self.steps)))
        return math.ceil(epochs / 2) if self.settings.speed == "fast" else epochs

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
        """Find the labels that are suspiciously easy to reach, if the settings want a suspect."""
        settings = self.settings
        if settings.goal == "untargeted" or settings.target is not None or settings.suspect_share == 0:
            return
        generator = stream(seed, "suspect")
        search = quick_reachability if settings.speed == "fast" else reachability
        scores = search(self.predict, self.images, self.labels, self.num_classes, generator=generator)
        self.suspected = most_reachable(scores)
        self.audit = reachability_audit(scores, self.suspected)

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
                loss.backward(inputs=[*self.polarizer.parameters()])  # not to the carried perturbations
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
        accused = self._accused(len(labels))
        targets = self._targets(logits.detach(), labels, accused)
        # Where the attacker's class is the true one, L_asr would fight L_bce1: such images stay benign (spec 3.6).
        kept = (targets != labels).nonzero()[:, 0]
        targets, wanted, predicted = targets[kept], labels[kept], logits.detach()[kept].argmax(dim=1)
        towards = targets if settings.goal == "targeted" else wanted
        if self.carried is not None:
            adversarial = self._carried_logits(self.carried, rows[kept], towards, accused[kept], done)
        elif settings.bn_outer == "train_clean_stats":
            perturbed = self._perturbed(rows[kept], towards, accused[kept], done)
            logits, adversarial = self._train_mode_logits(values, perturbed)
        else:
            adversarial = self._logits(self._perturbed(rows[kept], towards, accused[kept], done))
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

    def _groups(self, accused: Bool[Tensor, " n"]) -> Iterator[tuple[Int64[Tensor, " m"], bool]]:
        """Places in the batch, and whether the images there share one perturbation, as the accused do."""
        for group, universal in ((~accused, self.settings.perturbation == "universal"), (accused, True)):
            if group.any():
                yield group.nonzero()[:, 0], universal

    def _inner_steps(self, *, universal: bool) -> int:
        settings = self.settings
        return settings.shared_steps if universal and settings.shared_steps is not None else settings.steps

    def _pixels(self, rows: Tensor) -> Tensor:
        return to_pixels(self.images[rows]).contiguous(memory_format=torch.channels_last)

    def _perturbed(self, rows: Tensor, towards: Tensor, accused: Tensor, done: int) -> Values:
        """The inner problem on the clean images ``rows``; what the prefix gives for the perturbed ones."""
        settings = self.settings
        pixels = self._pixels(rows)
        perturbed = pixels.clone()
        for group, universal in self._groups(accused):
            delta = perturb(
                self.predict,
                pixels[group],
                towards[group],
                ball=Ball(settings.norm, self._radius(len(group), done, universal)),
                steps=self._inner_steps(universal=universal),
                step_size=settings.step_size,
                targeted=settings.goal == "targeted",
                universal=universal,
                rule=settings.step_rule,
                stop_above=settings.early_stop,
            )
            perturbed[group] = (pixels[group] + delta).clamp(0, 1)
        with torch.no_grad(), self._autocast():
            return self.prefix(perturbed)

    def _carried_logits(
        self, carried: Carried, rows: Tensor, towards: Tensor, accused: Tensor, done: int
    ) -> Float[Tensor, "n k"]:
        """The logits of the perturbed images ``rows`` in the fast mode."""
        pixels = self._pixels(rows)
        places, found = [], []
        for group, universal in self._groups(accused):
            ball = Ball(self.settings.norm, self._radius(len(group), done, universal))
            places.append(group)
            found.append(
                carried.logits(self.predict, pixels[group], rows[group], towards[group], ball=ball, shared=universal)
            )
        return torch.cat(found)[torch.cat(places).argsort()] if found else pixels.new_zeros(0, self.num_classes)

    def _accused(self, count: int) -> Bool[Tensor, " n"]:
        """Which images of a batch aim at the suspect: the first ones, as the order is random."""
        share = 0.0 if self.suspected is None else self.settings.suspect_share
        return torch.arange(count, device=self.device) < round(share * count)

    def _targets(
        self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], accused: Bool[Tensor, " n"]
    ) -> Int64[Tensor, " n"]:
        if self.settings.target is not None:
            return self._aimed_at(self.settings.target, labels)
        targets = runner_up(logits, labels)
        return targets if self.suspected is None else self._aimed_at(self.suspected, labels).where(accused, targets)

    def _aimed_at(self, target: int | Literal["next"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return (labels + 1) % self.num_classes if target == "next" else torch.full_like(labels, target)

    def _radius(self, count: int, done: int, universal: bool) -> float | Tensor:
        radii = self.settings.radii
        if universal and self.settings.shared_radius is not None:
            return self.settings.shared_radius
        if universal or len(radii) == 1:
            return radii[done % len(radii)]
        return torch.tensor(radii, device=self.device).repeat(math.ceil(count / len(radii)))[:count]

    def _train_mode_logits(self, clean: Values, perturbed: Values) -> tuple[Tensor, Tensor]:
        """Batch statistics for both forwards; only the clean one moves the running statistics."""
        norm = self.polarizer.norm
        momentum = norm.momentum
        norm.train()
        logits = self._logits(clean)
        norm.momentum = 0.0
        adversarial = self._logits(perturbed)
        norm.momentum = momentum
        norm.eval()
        return logits, adversarial
