"""What an attacker has probably chosen: the labels that one small perturbation of all images leads to most easily."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.perturb import Ball, perturb

Suspect = int | Literal["next"]
"""A class, for an all-to-one attack, or "next" for all-to-all, ``(y + 1) mod K``."""


OUTLIER = 1.75
"""Clean models have a class that is up to 1.6 times easier than the next best (docs/research/defaults.md)."""
NEXT_LEAD = 1.0
NEARLY = 0.5
FEWEST = 3
"""With fewer classes there is no spread to speak of."""
FINALISTS = 50
"""So many, as a first round that let 12 classes go on had overlooked the attacker's (docs/research/defaults.md)."""
RADIUS_IN_PIXELS = 4.0
CELLS = 8
"""A side, of the grid of perturbations that are as smooth as many triggers (docs/research/defaults.md)."""
LEAD = 1.5


def easiest(features: Float[Tensor, " m"]) -> Suspect:
    """What is reached most easily in features, whether it stands out or not.

    Args:
        features: scores of the classes, then of "next" and of "previous".

    Returns:
        A class, or "next" if that is NEXT_LEAD ahead (``lead_of_next``).
    """
    return "next" if float(lead_of_next(features)) >= NEXT_LEAD else int(features[:-2].argmax())


def lead_of_next(features: Float[Tensor, "... m"]) -> Float[Tensor, "..."]:
    """How far "next" is ahead of "previous", in standard deviations of the classes; 0 of less than FEWEST classes.

    What classes have in common by nature (limits of 60 and of 80 on signs) leads from each to the next as well as
    back again, so without a backdoor the two are alike (docs/research/defaults.md).

    Args:
        features: scores of the classes, then of "next" and of "previous"; ``-inf`` for classes without a score.
    """
    classes = features[..., :-2]
    known = classes[..., classes.reshape(-1, classes.shape[-1]).isfinite().all(dim=0)]
    if known.shape[-1] < FEWEST:
        return torch.zeros_like(features[..., 0])
    return (features[..., -2] - features[..., -1]) / known.std(dim=-1, correction=0).clamp_min(1e-3)


def lead_of_class(scores: Float[Tensor, "... k"]) -> Float[Tensor, "..."]:
    """How far the best class is ahead of the next best one, in standard deviations of all classes but the best.

    Args:
        scores: finite ones of at least FEWEST classes.
    """
    ordered = scores.sort(dim=-1, descending=True).values
    return (ordered[..., 0] - ordered[..., 1]) / ordered[..., 1:].std(dim=-1).clamp_min(1e-3)


def clearest(views: Mapping[int | None, Float[Tensor, " k"]]) -> int | None:
    """How the search in pixels sees most: the number of cells with which one class is furthest ahead.

    A small or busy trigger is what the network obeys pixel by pixel; a smooth one is hidden there by what any network
    can be driven to with noise, which a coarse grid cannot hold (docs/research/defaults.md).

    Args:
        views: by the number of cells, or None for every pixel by itself, the scores of ``reachability``.
    """
    return max(views, key=lambda cells: lead(views[cells]))


def lead(scores: Float[Tensor, " k"]) -> float:
    """``lead_of_class`` of the classes that have a score; 0 of less than FEWEST."""
    known = scores[scores.isfinite()]
    return float(lead_of_class(known)) if len(known) >= FEWEST else 0.0


def standing_out(pixels: Float[Tensor, " k"], features: Float[Tensor, " m"]) -> Suspect | None:
    """The suspect, by the scores of ``reachability`` for perturbations of pixels and of features, if there is one.

    It is the class whose margin in pixels is positive, exceeds all others OUTLIER times and is LEAD ahead of them
    (``lead_of_class``), which says more where all others are near zero. It is "next" instead if that is NEXT_LEAD ahead
    in features (``lead_of_next``), and further than such a class.
    """
    best, second = pixels.topk(2).values.tolist()
    ahead = lead(pixels)
    few = int(pixels.isfinite().sum()) < FEWEST
    stands_out = best > 0 and best >= OUTLIER * second and (few or ahead >= LEAD)
    if easiest(features) == "next" and not (stands_out and ahead > float(lead_of_next(features))):
        return "next"
    return int(pixels.argmax()) if stands_out else None


def aim_of_pixels(pixels: Float[Tensor, " k"], features: Float[Tensor, " m"]) -> Suspect | None:
    """The labels that perturbations of pixels should aim at: the suspect, or a class that both searches agree on.

    That is the class that both together find the easiest, if in either search it is at most NEARLY standard deviations
    of the classes behind the best. It is worth an attempt, but need not stand out, and a clean model can have one:
    that is why it is no suspect.
    """
    suspect = standing_out(pixels, features)
    if suspect is not None:
        return suspect
    behind = torch.stack([_behind_the_best(pixels), _behind_the_best(features[:-2])])
    best = int(behind.sum(dim=0).argmin())
    return best if float(behind[:, best].max()) <= NEARLY else None


def _behind_the_best(scores: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """In standard deviations of the classes; NaN, which is near nothing, of a network that has none but NaN."""
    known = scores[scores.isfinite()]
    return (scores.max() - scores) / (known.std(correction=0).clamp_min(1e-3) if len(known) > 0 else 1.0)


@dataclass(frozen=True)
class Effort:
    """What is spent on each aim.

    Args:
        samples: images that the perturbation is judged by, and as many for each step.
        steps: of the attack.
    """

    samples: int
    steps: int


SharedAttack = Callable[[Int64[Tensor, " m"], Int64[Tensor, " m"], Effort], Float[Tensor, "s k"]]
"""Rows of the clean set in random order, a label for each, and what to spend -> the logits of the first ``samples`` of
these images under the one perturbation, shared by all images, that leads to these labels."""


def reachability(
    attack: SharedAttack,
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    generator: torch.Generator,
    effort: Effort,
    first: Effort | None = None,
    finalists: int = FINALISTS,
    neighbours: bool = False,
) -> Float[Tensor, " m"]:
    """How far one perturbation for all images gets: the mean margin of the labels that it aims at.

    The margin is the logit of the label less the largest other one. A backdoor is a universal perturbation towards
    the attacker's labels, and one that the network was trained to obey: other classes are reached, too, but nowhere
    near as far beyond the border. (Probabilities saturate there and do not tell them apart.) This is our own addition
    (docs/research/defaults.md), in the spirit of Neural Cleanse.

    Args:
        attack: makes the perturbations.
        labels: the classes of the clean images; a class is approached from images of the others.
        num_classes: K.
        generator: chooses the images.
        effort: what is spent on each aim.
        first: what a first round spends on each class where there are more than ``finalists``. The others keep its
            margins, which are smaller than they would be.
        finalists: how many classes go on after the first round.
        neighbours: whether to try "next" and "previous" as well.

    Returns:
        K margins, one for each class; with ``neighbours`` two more: of "next", ``(y + 1) mod K``, and of "previous",
        ``(y - 1) mod K``. ``-inf`` for a class that all images belong to.
    """

    def margin(aim: int, spent: Effort) -> Tensor:
        _, found = margins(attack, labels, num_classes, aim, generator=generator, effort=spent)
        return found.mean() if len(found) else torch.tensor(-torch.inf, device=labels.device)

    if first is None or num_classes <= finalists:
        scores = [margin(aim, effort) for aim in range(num_classes)]
    else:
        scores = [margin(aim, first) for aim in range(num_classes)]
        for aim in torch.stack(scores).topk(finalists).indices.tolist():
            scores[aim] = margin(aim, effort)
    if neighbours:
        scores += [margin(aim, effort) for aim in (num_classes, num_classes + 1)]
    return torch.stack(scores)


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
        aim: a class, or K for "next" and K + 1 for "previous".
        generator: chooses the images.
        effort: what is spent.

    Returns:
        Their rows, and for each the logit of the label that the perturbation leads to less the largest other one;
        nothing if all images have that label.
    """
    wanted = torch.full_like(labels, aim) if aim < num_classes else (labels + (1, -1)[aim - num_classes]) % num_classes
    others = (labels != wanted).nonzero()[:, 0]
    rows = others[torch.randperm(len(others), generator=generator).to(others.device)]
    judged = rows[: effort.samples]
    if len(rows) == 0:
        return rows, torch.zeros(0, device=labels.device)
    logits = attack(rows, wanted[rows], effort).float()
    reached = logits.gather(1, wanted[judged, None])[:, 0]
    return judged, reached - logits.scatter(1, wanted[judged, None], -torch.inf).amax(dim=1)


def attack_in_pixels(
    predict: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    *,
    radius: float = RADIUS_IN_PIXELS,
    fresh: bool = True,
) -> SharedAttack:
    """Perturbations of pixels, by gradient steps that begin with half the radius and shorten evenly.

    Args:
        predict: pixels in [0, 1] to logits; in evaluation mode.
        images: the clean images, uint8.
        radius: in L2, in pixel units of [0, 1] for images of 32 x 32 pixels with 3 channels; it grows with the root
            of the number of values.
        fresh: each step sees other images and is shorter than the last, so that what few images have in common by
            chance counts for little (docs/research/defaults.md); otherwise all steps see the images that judge,
            and are alike.
    """

    def pixels_of(rows: Tensor) -> Tensor:
        return to_pixels(images[rows]).contiguous(memory_format=torch.channels_last)

    def attack(rows: Tensor, wanted: Tensor, effort: Effort) -> Tensor:
        delta = torch.zeros_like(to_pixels(images[:1]))
        for step in pixel_steps(len(rows), images[0].numel(), effort, radius=radius, fresh=fresh):
            delta = perturb(
                predict,
                pixels_of(rows[step.places]),
                wanted[step.places],
                ball=step.ball,
                steps=1,
                step_size=step.size,
                universal=True,
                rule="gradient",
                start=delta,
            )
        with torch.no_grad():
            return predict((pixels_of(rows[: effort.samples]) + delta).clamp(0, 1))

    return attack


@dataclass(frozen=True, eq=False)
class PixelStep:
    """One gradient step of a perturbation of pixels that all images share.

    Args:
        places: of the images that it sees, int64 ``(s,)``.
        ball: that holds the perturbation.
        size: alpha, in pixel units.
    """

    places: Int64[Tensor, " s"]
    ball: Ball
    size: float


def pixel_steps(
    count: int, values: int, effort: Effort, *, radius: float = RADIUS_IN_PIXELS, fresh: bool = True
) -> list[PixelStep]:
    """The steps of ``attack_in_pixels``, for tensors of any library.

    Args:
        count: of images; the first ``effort.samples`` are the judges.
        values: of one image.
        effort: what is spent.
        radius: as in ``attack_in_pixels``.
        fresh: likewise; each step then sees the next images after the judges, round and round.
    """
    length, samples = radius * (values / 3072) ** 0.5, min(count, effort.samples)
    return [
        PixelStep(
            (torch.arange(samples) + fresh * (step + 1) * samples) % count,
            Ball("l2", length),
            length / 2 * (1 - fresh * step / effort.steps) / values**0.5,
        )
        for step in range(effort.steps)
    ]
