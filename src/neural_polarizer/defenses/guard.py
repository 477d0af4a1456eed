"""Do no harm: how much accuracy a change of the network costs, and how far it may go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Point:
    """The network at one point of the dial.

    Args:
        dial: 0 is the network as it was, 1 the learned layer, beyond 1 more of the same change.
        acc: accuracy on the images that judge, as a fraction.
        drop: expected loss of accuracy (``expected_drop``), as a fraction.
        least_drop: the same less its standard errors (``Guard.errors``), which the budget is compared with.
        stand_ins: share of images that held-out stand-ins still lead to their class.
    """

    dial: float
    acc: float
    drop: float
    least_drop: float
    stand_ins: float


@dataclass(frozen=True)
class Guarded:
    """What the guard let through.

    Args:
        points: the dial's curve, from weak to strong.
        chosen: the dial of the result; 0 where nothing helps within the budget.
        judges: number of clean images that judge.
        held_out: whether nothing was learned from these.
        budget: the loss of accuracy that was allowed.
        weight: of the stand-ins in what was chosen.
        rounds: of renewed stand-ins in what was chosen.
    """

    points: tuple[Point, ...]
    chosen: float
    judges: int
    held_out: bool
    budget: float
    weight: float
    rounds: int

    @property
    def point(self) -> Point:
        """The chosen one."""
        return next(each for each in self.points if each.dial == self.chosen)

    @property
    def within_budget(self) -> bool:
        """Whether even the strongest point is."""
        return allowed(self.points, self.budget)[-1] == self.points[-1]


def margins(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The logit of the true class less the largest other one."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def expected_drop(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> tuple[float, float]:
    """By how much the accuracy falls, from margins of a few images, with less chance in it than a count has.

    A count moves in steps of 1 / n, and its error is that of the few images whose answer changes.  Instead each image
    counts by the probability that its margin would be positive if it were moved by chance as much as the change moves
    margins (a normal distribution with the standard deviation of the change): images near the boundary count in part.

    Args:
        before: margins of the network as it was.
        after: margins of the changed one.

    Returns:
        The loss of accuracy as a fraction, negative for a gain, and its standard error; infinite and 0 if a margin is
        not finite.
    """
    if not bool(after.isfinite().all()):
        return math.inf, 0.0
    width = (after - before).double().std(correction=0)
    if float(width) < 1e-12:
        lost = (before > 0).double() - (after > 0).double()
    else:
        share = torch.distributions.Normal(0.0, 1.0).cdf
        lost = share(before.double() / width) - share(after.double() / width)
    return float(lost.mean()), float(lost.std(correction=0)) / math.sqrt(len(lost))


def allowed(points: Sequence[Point], budget: float) -> Sequence[Point]:
    """The points of the dial from 0 up to the first that loses more than the budget."""
    over = next((place for place, point in enumerate(points) if point.dial > 0 and point.least_drop > budget), None)
    return points[:over]


def chosen_dial(points: Sequence[Point], budget: float, *, alike: float, beyond: float) -> float:
    """The dial that is allowed, and as strong as held-out stand-ins need, and a little more.

    Args:
        points: from weak to strong, beginning with 0.
        budget: the loss of accuracy that is allowed.
        alike: shares of stand-ins that count as equal.
        beyond: the little more, where it is allowed.
    """
    free = allowed(points, budget)
    fewest = min(point.stand_ins for point in free)
    needed = next(point.dial for point in free if point.stand_ins <= fewest + alike)
    return needed if needed == 0 else max(point.dial for point in free if point.dial <= needed + beyond)
