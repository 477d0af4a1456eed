"""Which class an attacker may be after: one test for every statistic, and one way to combine them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Belief:
    """What the evidence says of each aim (``least.wanted_labels``).

    Args:
        aims: probability that it is the attacker's, if there is one, adding up to 1, the floor included, ``(k + 1,)``:
            the classes, then "next".
        factors: how many times as likely the evidence is if it is the attacker's, likewise.
        forms: for each aim and form of a trigger the factor of the evidence: those in pixels, and last that of what
            only the layer's input has in common, ``(k + 1, f)``.
        backdoor: probability that there is a backdoor.
        p_value: of the strongest statistic, corrected for the number of aims and statistics looked at.
        likeliest: the aim with the largest factor.
    """

    aims: Float[Tensor, " a"]
    factors: Float[Tensor, " a"]
    forms: Float[Tensor, "a f"]
    backdoor: float
    p_value: float
    likeliest: int

    def beyond_pixels(self, clear: float) -> bool:
        """Whether the likeliest aim stands out at the layer's input, by ``clear``, but in no form in pixels."""
        of_likeliest = self.forms[self.likeliest]
        return bool(of_likeliest[-1] >= clear) and bool(of_likeliest[:-1].max() < clear)

    def knowing(self, aim: int, floor: float) -> "Belief":
        """The same where somebody has told the attacker's aim; every aim keeps its share of ``floor``."""
        even = torch.full_like(self.aims, floor / len(self.aims))
        even[aim] += 1 - floor
        return replace(self, aims=even, backdoor=1.0, likeliest=aim)


def told_aim(aim: int, num_classes: int) -> int | Literal["next"]:
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
    if freedom % 2:
        term = cosine.clone()
        total = torch.zeros_like(t) if freedom == 1 else term.clone()
        for power in range(3, freedom - 1, 2):
            term = term * cosine.square() * (power - 1) / power
            total = total + term
        inside = 2 / math.pi * (angle + sine * total)
    else:
        term = torch.ones_like(t)
        total = term.clone()
        for power in range(2, freedom - 1, 2):
            term = term * cosine.square() * (power - 1) / power
            total = total + term
        inside = sine * total
    return ((1 - inside) / 2).clamp(0, 1)


def bayes_factor(p: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """The largest factor by which a p-value can speak for the alternative, -1 / (e p ln p); 1 where p > 1 / e.

    Source: Sellke, Bayarri and Berger 2001.  P-values below 1e-6 count as 1e-6.
    """
    p = p.double().clamp_min(1e-6)
    return torch.where(p < 1 / math.e, -1 / (math.e * p * p.clamp_max(0.5).log()), 1.0)


def believed(
    by_form: Sequence[Float[Tensor, " k"]],
    others: Sequence[Float[Tensor, " k"]],
    shifts: Float[Tensor, " s"],
    *,
    floor: float,
    prior: float,
    resolution: float,
) -> Belief:
    """Combine statistics by class and one by shift (all-to-all).

    Factors of independent statistics multiply.  Among the aims all are alike before the evidence; that there is a
    backdoor at all has probability ``prior``.  Of the shifts, "next" (label + 1) is an aim, which all-to-all attacks
    have; the others are the crowd that it has to stand out from.

    Args:
        by_form: logarithms of norms by class, low where an attacker's class is, for each form; NaN where not computed.
        others: likewise, of what has no form.
        shifts: likewise by shift of the label, from 1 on.
        floor: share of the probability that is spread evenly over the aims that were looked at.
        prior: in [0, 1].
        resolution: of the statistics.
    """
    statistics = [*by_form, *others]
    p = [outlier_p(each, resolution) for each in statistics]
    of_next, next_seen = outlier_p(shifts, resolution)[:1], shifts[:1].isfinite()
    factors = torch.stack([bayes_factor(each) for each in p]).prod(dim=0)
    factors = torch.cat([factors, bayes_factor(of_next)])
    seen = torch.cat([torch.stack([each.isfinite() for each in statistics]).any(dim=0), next_seen])
    factors = torch.where(seen, factors, 0.0)
    forms = torch.stack([bayes_factor(each) for each in p[: len(by_form)]], dim=1)
    looks = sum(int(each.isfinite().sum()) for each in (*statistics, shifts[:1]))
    smallest = min(float(each.min()) for each in (*p, of_next) if len(each))
    count = max(1, int(seen.sum()))
    total = float(factors.sum())
    aims = (1 - floor) * factors / max(total, 1e-30) + floor * seen / count
    odds = prior * total / count
    return Belief(
        aims=aims.float(),
        factors=factors,
        forms=torch.cat([forms, forms.new_ones(len(of_next), len(by_form))]).float(),
        backdoor=odds / max(odds + 1 - prior, 1e-30),
        p_value=-math.expm1(looks * math.log1p(-min(smallest, 1 - 1e-12))),
        likeliest=int(factors.argmax()),
    )
