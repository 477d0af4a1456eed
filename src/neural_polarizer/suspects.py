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


OUTLIER = 1.5
FINALISTS = 6


def most_reachable(scores: Float[Tensor, " m"]) -> Suspect | None:
    """The suspect among the scores of ``reachability``, if any of them stands out.

    A class is one whose margin exceeds all others OUTLIER times. "next" is one if no class is and its margin is
    positive: one perturbation that moves most images to a class of their own is nothing that a network learns by
    itself.
    """
    best, second = scores[:-1].topk(2).values.tolist()
    if best > 0 and best >= OUTLIER * second:
        return int(scores[:-1].argmax())
    return "next" if float(scores[-1]) > 0 else None


def reachability(
    predict: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    generator: torch.Generator,
    samples: int = 32,
    radius: float = 3.0,
    steps: int = 8,
    aims: Sequence[int] | None = None,
) -> Float[Tensor, " m"]:
    """How far one perturbation for all images gets: the mean margin of the labels that it aims at.

    The margin is the logit of the label less the largest other one. A backdoor is a universal perturbation towards
    the attacker's labels, and one that the network was trained to obey: other classes are reached, too, but nowhere
    near as far beyond the border. (Probabilities saturate there and do not tell them apart.) This is our own addition
    (docs/defaults.md), in the spirit of Neural Cleanse.

    Args:
        predict: pixels in [0, 1] to logits ``(n, k)``; in evaluation mode.
        images: clean images, uint8.
        labels: their classes; a class is approached from images of the others.
        num_classes: K.
        generator: chooses the images.
        samples: images for each aim.
        radius: of the perturbation in L2, in pixel units of [0, 1] for images of 32 x 32 pixels with 3 channels;
            it grows with the root of the number of values.
        steps: gradient steps of half the radius each.
        aims: classes to try, K for the class next to each image's own; None tries all K + 1 in turn.

    Returns:
        A margin for each aim; ``-inf`` for a class that all images belong to.
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
        reached = logits.gather(1, wanted[rows, None])[:, 0]
        others_best = logits.scatter(1, wanted[rows, None], -torch.inf).amax(dim=1)
        scores.append((reached - others_best).mean())
    return torch.stack(scores)


def quick_reachability(
    predict: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    generator: torch.Generator,
) -> Float[Tensor, " m"]:
    """``reachability`` in two rounds: few images and steps for all aims, then in full for the best classes and "next".

    The margins of the others are those of the first round, which are smaller than they would be in the second.
    """
    scores = reachability(predict, images, labels, num_classes, generator=generator, samples=16, steps=3)
    best = [*scores[:-1].topk(min(FINALISTS, num_classes)).indices.tolist(), num_classes]
    scores[best] = reachability(predict, images, labels, num_classes, generator=generator, aims=best)
    return scores
