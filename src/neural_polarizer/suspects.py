"""What an attacker has probably chosen: the labels that one small perturbation of all images leads to most easily."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.perturb import Ball, perturb

Suspect = int | Literal["next"]
"""A class, for an all-to-one attack, or "next" for all-to-all, ``(y + 1) mod K``."""


FINALISTS, CLOSER = 5, 256


def most_reachable(
    predict: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    generator: torch.Generator,
) -> Suspect:
    """The suspect: the best aim by ``reachability``, whose arguments these are.

    With few images the scores are noisy, so the best few aims are measured again with more.
    """
    scores = reachability(predict, images, labels, num_classes, generator=generator)
    aims = scores.topk(min(FINALISTS, len(scores))).indices.tolist()
    again = reachability(predict, images, labels, num_classes, generator=generator, aims=aims, samples=CLOSER)
    best = aims[int(again.argmax())]
    return "next" if best == num_classes else best


def reachability(
    predict: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    generator: torch.Generator,
    aims: Sequence[int] | None = None,
    samples: int = 32,
    radius: float = 2.0,
    steps: int = 5,
) -> Float[Tensor, " m"]:
    """How far one perturbation for all images gets: the mean log-probability of the labels that it aims at.

    A backdoor is a universal perturbation towards the attacker's labels, so those are reached with the least effort.
    This is our own addition (docs/defaults.md), in the spirit of Neural Cleanse.

    Args:
        predict: pixels in [0, 1] to logits ``(n, k)``; in evaluation mode.
        images: clean images, uint8.
        labels: their classes; a class is approached from images of the others.
        num_classes: K.
        generator: chooses the images.
        aims: classes to aim at; K stands for the class next to each image's own. None: all K + 1.
        samples: images for each aim.
        radius: of the perturbation in L2, in pixel units of [0, 1] for images of 32 x 32 pixels with 3 channels;
            it grows with the root of the number of values.
        steps: gradient steps of half the radius each.

    Returns:
        One value of at most 0 for each aim; ``-inf`` for a class that all images belong to.
    """
    values = images[0].numel()
    length = radius * (values / 3072) ** 0.5
    scores = []
    for aim in range(num_classes + 1) if aims is None else aims:
        wanted = (labels + 1) % num_classes if aim == num_classes else torch.full_like(labels, aim)
        others = (labels != wanted).nonzero()[:, 0]
        if len(others) == 0:
            scores.append(torch.tensor(-torch.inf, device=images.device))
            continue
        rows = others[torch.randperm(len(others), generator=generator)[:samples].to(others.device)]
        pixels = to_pixels(images[rows]).contiguous(memory_format=torch.channels_last)
        delta = perturb(
            predict,
            pixels,
            wanted[rows],
            ball=Ball("l2", length),
            steps=steps,
            step_size=length / 2 / values**0.5,
            universal=True,
            rule="gradient",
        )
        with torch.no_grad():
            logits = predict((pixels + delta).clamp(0, 1)).float()
        scores.append(logits.log_softmax(dim=1).gather(1, wanted[rows, None]).mean())
    return torch.stack(scores)
