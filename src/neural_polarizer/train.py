"""The only supervised training loop: the victim's recipe of spec 1.5, resumable after every epoch."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.augment import random_crop, random_flip
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import write_bytes
from neural_polarizer.rng import global_rng, stream
from neural_polarizer.settings import check_literals

Progress = Callable[[str, int, int], None]
"""Called as ``progress(phase, steps done, steps in all)``; the library itself never prints."""


def silent(phase: str, done: int, total: int) -> None:
    """The default ``Progress``: nothing."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to train a classifier (spec 1.5); the defaults are the reference's for CIFAR-10.

    Args:
        epochs: passes over the data.
        batch_size: images a step; the last, smaller batch of an epoch is dropped.
        lr: peak learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        policy: "cosine" to zero over all epochs, stepped per epoch; "one-cycle" warms up linearly for the first
            quarter and falls linearly to zero, stepped per batch (better when epochs are few); "constant".
        crop_padding: pixels of zero padding for random crops; 0 switches them off.
        flip: mirror half of the images.
        precision: "bf16" autocast or "fp32".
    """

    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    policy: Literal["cosine", "one-cycle", "constant"] = "cosine"
    crop_padding: int = 4
    flip: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        check_literals(self)
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0:
            raise BadInputError(
                f"epochs and batch size must be at least 1 and lr positive, "
                f"got {self.epochs}, {self.batch_size}, {self.lr}"
            )

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of optimiser step ``step`` (from 0)."""
        if self.policy == "cosine":
            epoch = step // steps_per_epoch
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        if self.policy == "one-cycle":
            total = self.epochs * steps_per_epoch
            peak = max(1, total // 4)
            return self.lr * min((step + 1) / peak, (total - step) / max(1, total - peak))
        return self.lr


def fit(
    model: nn.Module,
    data: ImageSet,
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    checkpoint: Path | None = None,
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
        checkpoint: a safetensors file, written after each epoch and read at the start if it is of this very run.

    Raises:
        BadInputError: fewer images than one batch, or ``checkpoint`` is damaged or belongs to another run.
    """
    steps = len(data) // schedule.batch_size
    if steps == 0:
        raise BadInputError(
            f"{data.source}: {len(data)} images are less than one batch of {schedule.batch_size}; lower the batch size"
        )
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    run = "" if checkpoint is None else _run_id(model, data, schedule, seed)
    first = 0 if checkpoint is None else _resume(checkpoint, run, model, optimizer)
    images, labels = data.images.to(device), data.labels.to(device)
    model.train()
    for epoch in range(first, schedule.epochs):
        with global_rng(seed, "dropout", epoch):
            for step, (batch, target) in enumerate(_batches(images, labels, schedule, seed, epoch)):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.lr_at(epoch * steps + step, steps)
                with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bf16"):
                    logits = model(to_pixels(batch).contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits.float(), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress("train", epoch * steps + step + 1, schedule.epochs * steps)
        if checkpoint is not None:
            _save(checkpoint, run, epoch + 1, model, optimizer)
    model.eval()


def _batches(
    images: Tensor, labels: Tensor, schedule: Schedule, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    generator = stream(seed, "train", epoch)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    last = len(order) - len(order) % schedule.batch_size
    for rows in order[:last].split(schedule.batch_size):
        batch = images[rows]
        if schedule.crop_padding:
            batch = random_crop(batch, schedule.crop_padding, generator)
        if schedule.flip:
            batch = random_flip(batch, generator)
        yield batch, labels[rows]


def _run_id(model: nn.Module, data: ImageSet, schedule: Schedule, seed: int) -> str:
    """A hash of all that the result depends on: settings, data, and the untrained model with its normalisation."""
    settings = json.dumps([asdict(schedule), seed, data.sha256()], sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(path: Path, run: str, epochs_done: int, model: nn.Module, optimizer: torch.optim.SGD) -> None:
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum.contiguous()
    write_bytes(path, save(tensors, metadata={"run": run, "epochs_done": str(epochs_done)}))


def _resume(path: Path, run: str, model: nn.Module, optimizer: torch.optim.SGD) -> int:
    """Load the state of ``path`` and return the number of finished epochs; 0 if there is no such file."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if metadata.get("run") == run:
            model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
            for name, parameter in model.named_parameters():
                if f"momentum.{name}" in tensors:
                    optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"].to(parameter)
            return int(metadata["epochs_done"])
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"{path}: damaged training state ({reason}); remove it to start anew") from None
    raise BadInputError(
        f"{path}: belongs to a run with another model, other data, settings or seed; remove it or choose another folder"
    )
