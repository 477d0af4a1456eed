"""The victim's training by its recipe, resumable after every epoch."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.cache import digest_tensors, keep_tensors, kept_tensors
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.progress import Progress, silent
from neural_polarizer.rng import global_rng, stream
from neural_polarizer.settings import told
from neural_polarizer.train.schedule import AdversarialTraining, Schedule


class Assembled(NamedTuple):
    """A batch to train on."""

    pixels: Tensor  # float, in [0, 1]
    labels: Tensor  # int64
    penalty: Tensor | float  # a loss of the accomplice's own
    triggered: int  # the first so many rows carry the trigger and the attacker's label


@runtime_checkable
class Accomplice(Protocol):
    """What an attack puts into the training loop if it poisons every batch anew."""

    network: nn.Module  # whatever it trains beside the victim; an empty module if nothing
    # Of that network, whose learning rates follow the schedule's policy; None if nothing is trained.
    optimizer: torch.optim.Optimizer | None
    key: str  # all that it depends on, to recognise its own training state

    def assemble(self, images: Tensor, labels: Tensor, schedule: Schedule, generator: torch.Generator) -> Assembled:
        """The batch to train on, from uint8 images and labels."""


def fit(
    model: nn.Module,
    data: ImageSet,
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    checkpoint: Path | None = None,
    accomplice: Accomplice | None = None,
    triggered: Bool[Tensor, " n"] | None = None,
    between: Callable[[], None] | None = None,
) -> None:
    """Train ``model`` in place by cross-entropy; leaves it on ``device`` in evaluation mode.

    Every random draw of an epoch comes from the seed and the epoch's number, so a run that was killed and started
    again with the same ``checkpoint`` ends with the same weights as an undisturbed one.

    Args:
        model: maps float pixels in [0, 1] to logits; all its parameters are trained.
        data: the training images.
        schedule: the recipe.
        seed: fixes order, augmentation and dropout.
        device: where to train.
        progress: told about every step.
        checkpoint: safetensors, written after each epoch, read first if of this very run; set aside if damaged.
        accomplice: poisons every batch and augments it; its network is trained along and left in training mode.
        triggered: which of ``data`` carry a trigger, for adversarial training that spares them; None is none.
        between: called after every epoch but the last; may change the model's values.

    Raises:
        BadInputError: less than one batch, a checkpoint of another run, or weights that are no longer finite.
    """
    training = _begun(model, data, schedule, torch.device(device), accomplice, triggered)
    run = "" if checkpoint is None else _run_id(training, data, seed, triggered)
    first = 0 if checkpoint is None else _resume(checkpoint, run, training)
    peaks = [group["lr"] for group in training.groups]
    model.train()
    for epoch in range(first, schedule.epochs):
        _epoch(training, epoch, peaks, seed, progress)
        if between is not None and epoch + 1 < schedule.epochs:
            between()
        if checkpoint is not None:
            _save_state(checkpoint, run, epoch + 1, training)
    model.eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Training:
    """All that a step of training needs, on one device."""

    model: nn.Module
    schedule: Schedule
    images: Tensor
    labels: Tensor
    triggered: Tensor
    accomplice: Accomplice | None
    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Of all optimizers."""
        return [group for each in self.optimizers.values() for group in each.param_groups]


def _begun(
    model: nn.Module,
    data: ImageSet,
    schedule: Schedule,
    device: torch.device,
    accomplice: Accomplice | None,
    triggered: Bool[Tensor, " n"] | None,
) -> _Training:
    """Networks and data on the device, with new optimizers; fewer images than one batch are refused."""
    if len(data) < schedule.batch_size:
        raise BadInputError(
            f"{data.source}: {len(data)} images are less than one batch of {schedule.batch_size}; lower the batch size"
        )
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks, optimizers = {"model": model}, {"model.": schedule.optimize(model.parameters())}
    if accomplice is not None:
        networks["accomplice"] = accomplice.network.to(device).train()
        if accomplice.optimizer is not None:
            optimizers["accomplice."] = accomplice.optimizer
    labels = data.labels.to(device)
    return _Training(
        model=model,
        schedule=schedule,
        images=data.images.to(device),
        labels=labels,
        triggered=torch.zeros_like(labels, dtype=torch.bool) if triggered is None else triggered.to(device),
        accomplice=accomplice,
        networks=networks,
        optimizers=optimizers,
    )


def _epoch(training: _Training, epoch: int, peaks: Sequence[float], seed: int, progress: Progress) -> None:
    """One pass over the data, each learning rate a share of its peak; weights must stay finite."""
    schedule, groups = training.schedule, training.groups
    batch = schedule.batch_size
    steps = len(training.labels) // batch
    generator = stream(seed, "train", epoch)
    order = torch.randperm(len(training.labels), generator=generator).to(training.labels.device)
    with global_rng(seed, "dropout", epoch):
        for step, rows in enumerate(order[: steps * batch].split(batch)):
            share = schedule.share_at(epoch * steps + step, steps)
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = share * peak
            loss = _loss(training, rows, generator)
            for each in training.optimizers.values():
                each.zero_grad()
            loss.backward()
            for each in training.optimizers.values():
                each.step()
            progress("train", epoch * steps + step + 1, schedule.epochs * steps)
    if not is_finite(training.model):
        raise BadInputError(
            f"the loss was not finite in epoch {epoch + 1} of {schedule.epochs}; lower the learning rate, which is "
            f"{schedule.lr:g}"
        )


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of ``loss``."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def is_finite(network: nn.Module) -> bool:
    """Whether all values of ``network`` are finite numbers."""
    return all(bool(value.isfinite().all()) for value in network.state_dict().values())


def _loss(training: _Training, rows: Tensor, generator: torch.Generator) -> Tensor:
    model, schedule, accomplice = training.model, training.schedule, training.accomplice
    images, labels, triggered = training.images[rows], training.labels[rows], training.triggered[rows]
    penalty: Tensor | float = 0.0
    with schedule.autocast(images.device):
        if accomplice is None:
            pixels = to_pixels(schedule.augment(images, generator))
        else:
            pixels, labels, penalty, first = accomplice.assemble(images, labels, schedule, generator)
            triggered = torch.arange(len(labels), device=labels.device) < first
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if schedule.adversarial is None:
            return F.cross_entropy(model(pixels).float(), labels) + penalty
        share = schedule.adversarial.clean_weight
        delta = _adversarial(model, pixels.detach(), labels, schedule.adversarial, generator)
        if schedule.adversarial.spare_triggered:
            delta = delta.masked_fill(triggered.view(-1, 1, 1, 1), 0)
        moved = (pixels + delta).clamp(0, 1)
        loss = (1 - share) * F.cross_entropy(model(moved).float(), labels) + penalty
        return loss + share * F.cross_entropy(model(pixels).float(), labels) if share else loss


def _adversarial(
    model: nn.Module, pixels: Tensor, labels: Tensor, settings: AdversarialTraining, generator: torch.Generator
) -> Tensor:
    """The perturbation that PGD finds with batch norm in evaluation mode."""
    start = (2 * torch.rand(pixels.shape, generator=generator) - 1) * settings.eps
    model.eval()
    delta = perturb(
        model,
        pixels,
        labels,
        ball=Ball("linf", settings.eps),
        steps=settings.steps,
        step_size=settings.step_size,
        targeted=False,
        start=start.to(pixels),
    )
    model.train()
    return delta


def _run_id(training: _Training, data: ImageSet, seed: int, triggered: Bool[Tensor, " n"] | None) -> str:
    """A hash of all that the result depends on: settings, data, and the untrained networks with the normalisation."""
    key = "" if training.accomplice is None else training.accomplice.key
    settings = json.dumps([told(training.schedule), seed, data.sha256(), key], sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    if triggered is not None:
        digest.update(triggered.cpu().numpy().tobytes())
    for network in training.networks.values():
        digest_tensors(digest, (*network.named_parameters(), *network.named_buffers()))
    return digest.hexdigest()


def _save_state(path: Path, run: str, epochs_done: int, training: _Training) -> None:
    """Write the values of the networks, by name, and the state of the optimizers, by prefixes such as ``model.``."""
    tensors: dict[str, Tensor] = {}
    for kind, network in training.networks.items():
        tensors |= {f"{kind}.{name}": value for name, value in network.state_dict().items()}
    for kind, optimizer in training.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{kind}{index}.{name}"] = value
    keep_tensors(path, tensors, {"run": run, "epochs_done": str(epochs_done)})


def _resume(path: Path, run: str, training: _Training) -> int:
    """Load the state of ``path``, which must be of ``run``, and return the finished epochs; 0 if none is whole."""
    kept = kept_tensors(path)
    if kept is None:
        return 0
    if kept.about.get("run") != run:
        raise BadInputError(
            f"{path}: belongs to a run with another model, other data, settings or seed; remove it or choose another "
            "folder"
        )
    for kind, network in training.networks.items():
        network.load_state_dict(below(f"{kind}.", kept.tensors))
    for kind, optimizer in training.optimizers.items():
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in below(f"optimizer.{kind}", kept.tensors).items():
            index, _, slot = name.partition(".")
            if index.isdecimal():
                state[int(index)][slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})
    return int(kept.about["epochs_done"])


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of these."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
