"""One pass over the clean images for defenses that update weights in a way of their own."""

from collections.abc import Callable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.rng import global_rng, stream
from neural_polarizer.train import Progress, Schedule


def one_pass(
    epoch: int,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Tensor, Tensor], None],
    *,
    use: str,
    seed: int,
    phase: str,
    progress: Progress,
) -> None:
    """Call ``step(pixels, labels)`` for each batch, as ``train.fit`` makes them: in random order, augmented.

    Order, augmentation and dropout come from the seed, ``use`` and the epoch; torch's global generators are left as
    they were.  Batches are never larger than the clean set; the last, smaller one is dropped.

    Args:
        epoch: from 0.
        images: where ``step`` computes.
        labels: likewise.
        schedule: batch size, learning rates and augmentation.
        optimizer: whose learning rate follows the schedule.
        step: one update; pixels are float in [0, 1].
        use: names the random streams.
        seed: fixes them.
        phase: what ``progress`` is told.
        progress: told about every step.
    """
    batch = min(schedule.batch_size, len(labels))
    steps = len(labels) // batch
    generator = stream(seed, use, epoch)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    with global_rng(seed, f"{use} dropout", epoch):
        for number, rows in enumerate(order[: steps * batch].split(batch)):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(epoch * steps + number, steps)
            step(to_pixels(schedule.augment(images[rows], generator)), labels[rows])
            progress(phase, epoch * steps + number + 1, schedule.epochs * steps)
