"""Which class an attacker may be after: one test for every statistic, and one way to combine them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from neural_polarizer.defenses.result import Suspect
from neural_polarizer.defenses.stand_ins.settings import Looks


@dataclass(frozen=True, eq=False)
class Belief:
    """What the evidence says of each aim (``least.wanted_labels``)."""

    # Probability that it is the attacker's, if there is one, adding up to 1, the floor included: the classes, then
    # "next".
    aims: Float[Tensor, " a"]
    factors: Float[Tensor, " a"]  # how many times as likely the evidence is if it is the attacker's, likewise
    # For each aim and form of a trigger the factor of the evidence: those in pixels, and last that of what only
    # the layer's input has in common.
    forms: Float[Tensor, "a f"]
    factor: float  # how many times as likely the evidence is if there is a backdoor; below 1 it speaks against one
    backdoor: float  # probability that there is one
    # P-value of each, all its statistics together (``combined_p``), likewise; 1 where not looked at.
    by_aim: Float[Tensor, " a"]
    likeliest: int  # the aim with the largest factor
    # Its p-value, corrected for the number of aims looked at: a model whose classes are all alike shows one as extreme
    # this often at most.  The one test, for whoever accuses a model.
    p_value: float

    def certainty(self, clear: float) -> float:
        """Where the evidence lies between ``clear`` for a backdoor (1) and as clear against one (-1), in logarithms."""
        return min(1.0, max(-1.0, math.log(max(self.factor, 1e-30)) / math.log(clear)))

    def accused(self, level: float) -> Suspect | None:
        """The class that stands out at this level of false alarms, or "next"; None where nothing does."""
        return told_aim(self.likeliest, len(self.aims) - 1) if self.p_value < level else None

    def judging(self, clear: float) -> Float[Tensor, "a f"]:
        """``forms`` for what is to judge: where some in pixels stand out, by ``clear``, only these.

        In any other form stand-ins are what the class has by nature, and a layer that stops the trigger leaves them.
        In features a class stands out wherever it does in pixels.
        """
        clearly = torch.cat(
            [self.forms[:, :-1] >= clear, torch.zeros_like(self.forms[:, -1:], dtype=torch.bool)], dim=1
        )
        return torch.where(clearly.any(dim=1, keepdim=True), self.forms.masked_fill(~clearly, 0.0), self.forms)

    def knowing(self, aim: int, floor: float) -> "Belief":
        """The same where somebody has told the attacker's aim; every aim keeps its share of ``floor``."""
        even = torch.full_like(self.aims, floor / len(self.aims))
        even[aim] += 1 - floor
        return replace(self, aims=even, factor=math.inf, backdoor=1.0, likeliest=aim)


def told_aim(aim: int, num_classes: int) -> Suspect:
    """An aim in words: a class, or "next"."""
    return aim if aim < num_classes else "next"


def outlier_p(values: Float[Tensor, " c"], resolution: float = 1e-6) -> Float[Tensor, " c"]:
    """For each value the probability that one drawn like the others lies so far below them.

    The externally studentised deviation, t = (mean of the others - x) / (sd of the others sqrt(1 + 1 / (c - 1))), has
    Student's distribution with c - 2 degrees of freedom where all values are normal and alike.  NaN counts as missing.
    Values are not told apart more finely than ``resolution``, the least standard deviation.

    Returns:
        One-sided p-values, float64; 1 where there are fewer than four values or one is missing.
    """
    values = values.double()
    known = values.isfinite()
    p = torch.ones_like(values)
    found = values[known]
    count = len(found)
    if count < 4:
        return p
    rest = (found.sum() - found) / (count - 1)
    squares = (found.square().sum() - found.square()) / (count - 1) - rest.square()
    deviation = (squares.clamp_min(0) * (count - 1) / (count - 2)).sqrt().clamp_min(resolution)
    t = (rest - found) / (deviation * math.sqrt(1 + 1 / (count - 1)))
    p[known] = student_tail(t, count - 2)
    return p


def student_tail(t: Float[Tensor, " c"], freedom: int) -> Float[Tensor, " c"]:
    """P(T > t) for Student's distribution with a whole number of degrees of freedom; exact (finite sums)."""
    t = t.double()
    angle = torch.atan(t / math.sqrt(freedom))
    sine, cosine = angle.sin(), angle.cos()
    odd = freedom % 2
    term = cosine if odd else torch.ones_like(t)
    total = torch.zeros_like(t) if freedom == 1 else term
    for power in range(2 + odd, freedom - 1, 2):
        term = term * cosine.square() * (power - 1) / power
        total = total + term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return ((1 - inside) / 2).clamp(0, 1)


def student_quantile(p: float, freedom: int) -> float:
    """The t with P(T > t) = p, for p below 1/2; by bisection."""
    low, high = 0.0, 1.0
    while float(student_tail(torch.tensor([high]), freedom)) > p and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        above = float(student_tail(torch.tensor([middle], dtype=torch.float64), freedom)) > p
        low, high = (middle, high) if above else (low, middle)
    return high


def combined_p(p: Float[Tensor, "s c"]) -> Float[Tensor, " c"]:
    """One p-value of several tests of the same hypothesis, which may depend on each other in any way.

    The Cauchy combination test: the mean of tan(pi (1/2 - p)) has a standard Cauchy tail, exactly where the tests are
    independent or the same, and nearly so, for small p-values, under other dependence.  Source: Liu and Xie, "Cauchy
    Combination Test", JASA 2020.  P-values above 0.99 count as 0.99: near 1 the tangent has no lower bound, so that a
    class kept far away in one statistic would be cleared of what all others say.  Source: Fang, Chang, Park and Tseng,
    "Heavy-tailed distribution for combining dependent p-values with asymptotic robustness", Statistica Sinica 2023.
    P-values of exactly 1 (nothing measured) are left out; 1 where there are no others.
    """
    p = p.double()
    told = p < 1
    scores = torch.where(told, torch.tan(math.pi * (0.5 - p.clamp(1e-15, 0.99))), 0.0)
    mean = scores.sum(dim=0) / told.sum(dim=0).clamp_min(1)
    # atan2 keeps small tails exact, where 1/2 - atan(x) / pi would cancel.
    tail = torch.atan2(torch.ones_like(mean), mean) / math.pi
    return torch.where(told.any(dim=0), tail, 1.0)


def corrected_p(p: float, count: int) -> float:
    """Chance that the smallest of ``count`` independent p-values is as small as ``p`` (Sidak 1967)."""
    return -math.expm1(max(count, 1) * math.log1p(-min(p, 1 - 1e-12)))


def nameable(values: Float[Tensor, " c"], level: float, aims: int, statistics: int, resolution: float) -> float | None:
    """How near a class would have to be for the test to name it, by these norms only, if all others said nothing.

    ``values`` are logarithms of norms by class, NaN where not computed, told apart no finer than ``resolution``; it is
    one of so many ``statistics`` whose p-values are combined, and so many ``aims`` were looked at.

    Returns its norm as a share of the others' (geometric) mean, in (0, 1); None with fewer than four values.
    """
    found = values[values.isfinite()].double()
    count = len(found)
    if count < 4:
        return None
    found = found.sort().values[1:]  # the nearest may be the attacker's, and is not one of the crowd
    spread = max(float(found.std()), resolution)
    of_aim = -math.expm1(math.log1p(-level) / max(aims, 1))
    # The others have a p-value of 1/2, of which the tangent is 0.
    of_statistic = math.atan2(1.0, statistics / math.tan(math.pi * of_aim)) / math.pi
    t = student_quantile(of_statistic, count - 2)
    return math.exp(-t * spread * math.sqrt(1 + 1 / (count - 1)))


def bayes_factor(p: Float[Tensor, " c"], alternative: float) -> Float[Tensor, " c"]:
    """The density of a p-value if its class is the attacker's, a p^(a - 1), over that of any other, 1; 1 where p is 1.

    The ``alternative`` a lies in (0, 1]. P-values below 1e-6 count as 1e-6; those of 1 are of classes that were not
    looked at.  Source: the alternatives of Sellke, Bayarri and Berger 2001.
    """
    p = p.double()
    return torch.where(p < 1, alternative * p.clamp_min(1e-6) ** (alternative - 1), 1.0)


def mixed_factor(p: Float[Tensor, " c"], alternative: float, shown: float) -> Float[Tensor, " c"]:
    """``bayes_factor`` where a backdoor shows in this statistic with probability ``shown`` only.

    A trigger has one form, so that its class stands out in some statistics, and in others is like any other.
    """
    return 1 - shown + shown * bayes_factor(p, alternative)


def believed(
    by_class: Sequence[Float[Tensor, " k"]],
    by_form: Sequence[Float[Tensor, " k"]],
    shifts: Float[Tensor, " s"],
    looks: Looks,
    resolution: float,
) -> Belief:
    """Combine statistics by class and one by shift (all-to-all).

    All are logarithms of norms, low where an attacker's aim is, and NaN where not computed: ``by_class``; ``by_form``,
    one for each form that a trigger may have; ``shifts`` of the label, from 1 on.

    Factors of independent statistics multiply, and the aim with the largest is the likeliest: what the layer is learned
    against and judged by, and what is accused.  Its p-values are combined to one, and that is corrected for the number
    of aims, as each could have been the likeliest.  Among the aims all are alike before the evidence.  Of the shifts,
    "next" (label + 1) is an aim, which all-to-all attacks have; the others are the crowd that it has to stand out from.
    """
    p = [outlier_p(each, resolution) for each in by_class]
    of_next, next_seen = outlier_p(shifts, resolution)[:1], shifts[:1].isfinite()
    factors = torch.stack([mixed_factor(each, looks.alternative, looks.shown) for each in p]).prod(dim=0)
    seen = torch.cat([torch.stack([each.isfinite() for each in by_class]).any(dim=0), next_seen])
    factors = torch.where(seen, torch.cat([factors, mixed_factor(of_next, looks.alternative, looks.shown)]), 0.0)
    forms = torch.ones(len(factors), len(by_form))
    for place, each in enumerate(by_form):
        forms[: len(each), place] = bayes_factor(outlier_p(each, resolution), looks.alternative)
    by_aim = torch.cat([combined_p(torch.stack(p)), of_next])
    count = max(1, int(seen.sum()))
    total, likeliest = float(factors.sum()), int(factors.argmax())
    aims = (1 - looks.floor) * factors / max(total, 1e-30) + looks.floor * seen / count
    factor = total / count
    odds = looks.prior * factor
    return Belief(
        aims=aims.float(),
        factors=factors,
        forms=forms,
        factor=factor,
        backdoor=odds / max(odds + 1 - looks.prior, 1e-30),
        by_aim=by_aim,
        likeliest=likeliest,
        p_value=corrected_p(float(by_aim[likeliest]), count),
    )
