"""Passes over the clean images for defenses that update weights in a way of their own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Run
from neural_polarizer.rng import global_rng
from neural_polarizer.train.schedule import Schedule

Step = Callable[[Tensor, Tensor], None]
"""One update, from float pixels in [0, 1] and their labels."""


def all_passes(
    clean: ImageSet,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    step: Step,
    run: Run,
    *,
    use: str,
    phase: str,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Call ``step(pixels, labels)`` for each batch, as ``train.fit`` makes them: in random order, augmented.

    Order, augmentation and dropout come from the seed, ``use`` and the epoch; torch's global generators are left as
    they were. Batches are never larger than the clean set; the last, smaller one is dropped. The optimizer's learning
    rate follows the schedule. ``phase`` is what ``progress`` is told; ``enough`` is asked after each epoch whether to
    stop.
    """
    images, labels = clean.images.to(run.device), clean.labels.to(run.device)
    batch = min(schedule.batch_size, len(labels))
    steps = len(labels) // batch
    for epoch in range(schedule.epochs):
        generator = run.stream(use, epoch)
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        with global_rng(run.seed, f"{use} dropout", epoch):
            for number, rows in enumerate(order[: steps * batch].split(batch)):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.lr_at(epoch * steps + number, steps)
                step(to_pixels(schedule.augment(images[rows], generator)), labels[rows])
                run.progress(phase, epoch * steps + number + 1, schedule.epochs * steps)
        if enough():
            return


def logits_by(network: nn.Module, pixels: Tensor, schedule: Schedule) -> Tensor:
    """Float32 logits, computed in the schedule's precision."""
    with schedule.autocast(pixels.device):
        return network(pixels).float()
