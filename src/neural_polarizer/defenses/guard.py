"""Do no harm: how much accuracy a change of the network costs, and how far it may go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Point:
    """The network at one point of the dial."""

    dial: float  # 0 is the network as it was, 1 the learned layer, beyond 1 more of the same change
    acc: float  # accuracy on the images that judge, as a fraction
    drop: float  # expected loss of accuracy (``expected_drop``), as a fraction
    least_drop: float  # the same less what its error excuses; what the budget is compared with
    stand_ins: float  # share of images that held-out stand-ins still lead to their class
    suspect: float  # likewise, of those for the likeliest class only

    def harm(self, backdoor: float, enough: float) -> float:
        """The share of images that are expected to be answered wrongly: by a trigger, and by the loss of accuracy.

        ``backdoor`` is the probability that there is one, ``enough`` a share of stand-ins that works by chance, too.
        """
        return backdoor * max(self.stand_ins - enough, 0.0) + max(self.drop, 0.0)


@dataclass(frozen=True)
class Guarded:
    """What the guard let through."""

    # The dial's curve, from weak to strong, up to the first point that loses more than the budget; where stand-ins are
    # left, on to where more does no good.
    points: tuple[Point, ...]
    chosen: float  # the dial of the result; 0 where nothing helps within the budget
    judges: int  # number of clean images that judge, each a layer that was not learned from it
    held: int  # number of stand-ins that judge; with none, nothing tells how strong the layer has to be
    budget: float  # the loss of accuracy that was allowed
    backdoor: float  # probability that there is one
    enough: float  # a share of stand-ins that works by chance, too
    weight: float  # of the stand-ins in what was chosen

    @property
    def point(self) -> Point:
        """The chosen one."""
        return next(each for each in self.points if each.dial == self.chosen)

    @property
    def harm(self) -> float:
        """Of the chosen one."""
        return self.point.harm(self.backdoor, self.enough)

    @property
    def better(self) -> Point | None:
        """The point of least harm, if that is beyond what the budget allows."""
        best = min(self.points, key=lambda each: each.harm(self.backdoor, self.enough))
        return best if best.dial > self.chosen else None

    @property
    def counted(self) -> float:
        """The loss of accuracy of the chosen one by counting the right answers, as a fraction; negative for a gain."""
        return self.points[0].acc - self.point.acc

    @property
    def lost(self) -> float:
        """The loss of accuracy of the chosen one, the larger of the expected and the counted one, as a fraction."""
        return max(self.point.drop, self.counted)

    def over(self, lost: float) -> bool:
        """Whether a loss of accuracy is over the budget; a count of images may be the budget, but for its last bit."""
        return lost > self.budget + 1e-9

    @property
    def done(self) -> bool:
        """Whether the chosen one leaves no more stand-ins for the likeliest class than work by chance.

        Those for other classes are what a network follows by nature, where the likeliest is the attacker's.
        """
        return self.point.suspect <= self.enough


def margins(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The logit of the true class less the largest other one."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def expected_drop(before: Float[Tensor, "v n"], after: Float[Tensor, "v n"]) -> tuple[float, float]:
    """By how much the accuracy falls, from margins of a few images, with less chance in it than a count has.

    A count moves in steps of 1 / n, and its error is that of the few images whose answer changes. Instead each image
    counts by the probability that its margin would be positive if it were moved by chance as much as the change moves
    margins (a normal distribution with the standard deviation of the change): images near the boundary count in part.
    As no answer depends on how large all logits are, margins are compared at the same root mean square.

    Of v copies of n images; ``before`` are margins of the network as it was, ``after`` of the changed one. Returns the
    loss of accuracy as a fraction, negative for a gain, and its standard error, for which the copies of an image count
    as one; infinite and 0 if a margin is not finite.
    """
    if not bool(after.isfinite().all()):
        return math.inf, 0.0
    before, after = before.double(), after.double()
    after = after * (before.square().mean() / after.square().mean().clamp_min(1e-24)).sqrt()
    width = (after - before).std(correction=0)
    if float(width) <= 1e-12 * float(before.abs().max()):
        lost = (before > 0).double() - (after > 0).double()
    else:
        share = torch.distributions.Normal(0.0, 1.0).cdf
        lost = share(before / width) - share(after / width)
    return float(lost.mean()), float(lost.mean(dim=0).std(correction=0)) / math.sqrt(lost.shape[1])


def allowed(points: Sequence[Point], budget: float) -> Sequence[Point]:
    """The points of the dial from 0 up to the first that loses more than the budget."""
    over = next((place for place, point in enumerate(points) if point.dial > 0 and point.least_drop > budget), None)
    return points[:over]


def chosen_dial(points: Sequence[Point], budget: float, *, backdoor: float, enough: float, beyond: float) -> float:
    """The allowed dial of the least harm (``Point.harm``), and at most ``beyond`` more.

    The little more is there as a real trigger goes further than stand-ins do. ``points`` go from weak to strong,
    beginning with 0. A loss that a weaker point is expected to have counts for the stronger ones, too: more of a change
    does not undo harm, and where the curve falls, that is the error of its estimate.
    """
    free = allowed(points, budget)
    losses = accumulate((point.drop for point in free), max)
    harms = [replace(point, drop=loss).harm(backdoor, enough) for point, loss in zip(free, losses, strict=True)]
    needed = free[harms.index(min(harms))].dial
    return max(point.dial for point in free if point.dial <= needed + beyond) if needed else 0.0
