"""How unusual a class is among the others, in one statistic and in several."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


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
