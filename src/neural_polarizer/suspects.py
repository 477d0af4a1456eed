"""What an attacker has probably chosen: the labels that one small perturbation of all images leads to most easily."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.perturb import Ball, perturb

Suspect = int | Literal["next"]
"""A class, for an all-to-one attack, or "next" for all-to-all, ``(y + 1) mod K``."""


OUTLIER = 1.5
CLEAR = 3.0
"""Of an all-to-all backdoor's classes, the best in pixels was at most 1.8 times the next best (docs/defaults.md)."""
NEXT_LEAD = 1.0
NEXT_WEIGHT = 2.5
"""A clean model has "next" behind its mean class, so little of a lead over that is telling."""
FEWEST = 3
"""With fewer classes there is no spread to speak of."""
FINALISTS = 6


def easiest(scores: Float[Tensor, " m"]) -> Suspect:
    """The aim with the largest of the scores of ``reachability``, whether it stands out or not."""
    best = int(scores.argmax())
    return "next" if best == len(scores) - 1 else best


def lead_of_next(features: Float[Tensor, "... m"]) -> Float[Tensor, "..."]:
    """How far "next" is ahead of the mean class, in standard deviations of the classes.

    Args:
        features: finite scores of the classes, then of "next".
    """
    classes = features[..., :-1]
    return (features[..., -1] - classes.mean(dim=-1)) / classes.std(dim=-1, correction=0).clamp_min(1e-3)


def lead_of_class(scores: Float[Tensor, "... m"]) -> Float[Tensor, "..."]:
    """How far the best class is ahead of the next best one, in standard deviations of all classes but the best.

    Args:
        scores: finite ones of at least FEWEST classes, then of "next".
    """
    ordered = scores[..., :-1].sort(dim=-1, descending=True).values
    return (ordered[..., 0] - ordered[..., 1]) / ordered[..., 1:].std(dim=-1).clamp_min(1e-3)


def standing_out(pixels: Float[Tensor, " m"], features: Float[Tensor, " m"]) -> Suspect | None:
    """The suspect, by the scores of ``reachability`` for perturbations of pixels and of features, if there is one.

    It is a class whose margin in pixels is CLEAR times any other's, and at least CLEAR. Otherwise it is "next" if no
    class is easier to reach in features, or if "next" is NEXT_LEAD standard deviations ahead of the mean class there,
    and no class further ahead of the others than NEXT_WEIGHT times that: one perturbation that moves most images to a
    class of their own is nothing that a network learns by itself. Otherwise it is a class whose margin in pixels is
    positive and exceeds all others OUTLIER times.
    """
    best, second = pixels[:-1].topk(2).values.tolist()
    if best < CLEAR * max(second, 1.0) and _next_stands_out(features):
        return "next"
    return int(pixels[:-1].argmax()) if best > 0 and best >= OUTLIER * second else None


def _next_stands_out(features: Float[Tensor, " m"]) -> bool:
    known = features[features.isfinite()]
    lead = float(lead_of_next(known)) if len(known) > FEWEST else 0.0
    return easiest(features) == "next" or (lead >= NEXT_LEAD and NEXT_WEIGHT * lead >= float(lead_of_class(known)))


def aim_of_pixels(pixels: Float[Tensor, " m"], features: Float[Tensor, " m"]) -> Suspect | None:
    """The labels that perturbations of pixels should aim at: the suspect, or a class that both searches agree on.

    A class that is the easiest to reach in pixels and in features is worth an attempt, but need not stand out, and a
    clean model can have one: that is why it is no suspect.
    """
    suspect, best = standing_out(pixels, features), int(pixels[:-1].argmax())
    return best if suspect is None and easiest(features) == best else suspect


SharedAttack = Callable[[Int64[Tensor, " m"], Int64[Tensor, " m"], int], Float[Tensor, "m k"]]
"""Rows of the clean set, a label for each, and a number of steps -> the logits of those images under the one
perturbation, shared by all of them, that leads to these labels."""


@dataclass(frozen=True)
class Effort:
    """What is spent on each aim.

    Args:
        samples: images.
        steps: of the attack.
    """

    samples: int
    steps: int


def reachability(
    attack: SharedAttack,
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    generator: torch.Generator,
    effort: Effort,
    first: Effort | None = None,
) -> Float[Tensor, " m"]:
    """How far one perturbation for all images gets: the mean margin of the labels that it aims at.

    The margin is the logit of the label less the largest other one. A backdoor is a universal perturbation towards
    the attacker's labels, and one that the network was trained to obey: other classes are reached, too, but nowhere
    near as far beyond the border. (Probabilities saturate there and do not tell them apart.) This is our own addition
    (docs/defaults.md), in the spirit of Neural Cleanse.

    Args:
        attack: makes the perturbations.
        labels: the classes of the clean images; a class is approached from images of the others.
        num_classes: K.
        generator: chooses the images.
        effort: what is spent on each aim; with ``first`` only on "the next class" and on the FINALISTS classes that
            the first round is best for. The others keep its margins, which are smaller than they would be.
        first: what the first round spends on each aim.

    Returns:
        K + 1 margins: one for each class, then for the class next to each image's own; ``-inf`` for a class that all
        images belong to.
    """

    def margin(aim: int, spent: Effort) -> Tensor:
        _, found = margins(attack, labels, num_classes, aim, generator=generator, effort=spent)
        return found.mean() if len(found) else torch.tensor(-torch.inf, device=labels.device)

    scores = torch.stack([margin(aim, first or effort) for aim in range(num_classes + 1)])
    if first is not None:
        for aim in (*scores[:-1].topk(min(FINALISTS, num_classes)).indices.tolist(), num_classes):
            scores[aim] = margin(aim, effort)
    return scores


def margins(
    attack: SharedAttack,
    labels: Int64[Tensor, " n"],
    num_classes: int,
    aim: int,
    *,
    generator: torch.Generator,
    effort: Effort,
) -> tuple[Int64[Tensor, " m"], Float[Tensor, " m"]]:
    """How far one perturbation gets with each of some images of other labels than it leads to.

    Args:
        attack: makes it.
        labels: the classes of the clean images.
        num_classes: K.
        aim: a class, or K for the class next to each image's own.
        generator: chooses the images.
        effort: what is spent.

    Returns:
        Their rows, and for each the logit of the label that the perturbation leads to less the largest other one;
        nothing if all images have that label.
    """
    wanted = (labels + 1) % num_classes if aim == num_classes else torch.full_like(labels, aim)
    others = (labels != wanted).nonzero()[:, 0]
    rows = others[torch.randperm(len(others), generator=generator)[: effort.samples].to(others.device)]
    if len(rows) == 0:
        return rows, torch.zeros(0, device=labels.device)
    logits = attack(rows, wanted[rows], effort.steps).float()
    reached = logits.gather(1, wanted[rows, None])[:, 0]
    return rows, reached - logits.scatter(1, wanted[rows, None], -torch.inf).amax(dim=1)


def attack_in_pixels(
    predict: Callable[[Tensor], Tensor], images: UInt8[Tensor, "n c h w"], *, radius: float = 3.0
) -> SharedAttack:
    """Perturbations of pixels, by gradient steps of half the radius each.

    Args:
        predict: pixels in [0, 1] to logits; in evaluation mode.
        images: the clean images, uint8.
        radius: in L2, in pixel units of [0, 1] for images of 32 x 32 pixels with 3 channels; it grows with the root
            of the number of values.
    """
    values = images[0].numel()
    length = radius * (values / 3072) ** 0.5

    def attack(rows: Tensor, wanted: Tensor, steps: int) -> Tensor:
        pixels = to_pixels(images[rows]).contiguous(memory_format=torch.channels_last)
        delta = perturb(
            predict,
            pixels,
            wanted,
            ball=Ball("l2", length),
            steps=steps,
            step_size=length / 2 / values**0.5,
            universal=True,
            rule="gradient",
        )
        with torch.no_grad():
            return predict((pixels + delta).clamp(0, 1))

    return attack
