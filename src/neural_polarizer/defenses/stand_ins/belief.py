"""Which class an attacker may be after: one test for every statistic, and one way to combine them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from neural_polarizer.defenses.result import Suspect
from neural_polarizer.defenses.stand_ins.p_values import combined_p, corrected_p, outlier_p
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
        """``forms`` for what is to judge: that in pixels in which an aim stands out most, where it does by ``clear``.

        A trigger has one form. In any other, stand-ins are what the class has by nature, and a layer that stops the
        trigger leaves them. In features a class stands out wherever it does in pixels.
        """
        pixels = self.forms[:, :-1]
        leading = (pixels == pixels.amax(dim=1, keepdim=True)) & (pixels >= clear)
        led = torch.cat([leading, torch.zeros_like(leading[:, :1])], dim=1)
        return torch.where(leading.any(dim=1, keepdim=True), self.forms.masked_fill(~led, 0.0), self.forms)

    def knowing(self, aim: int, floor: float) -> "Belief":
        """The same where somebody has told the attacker's aim; every aim keeps its share of ``floor``."""
        even = torch.full_like(self.aims, floor / len(self.aims))
        even[aim] += 1 - floor
        return replace(self, aims=even, factor=math.inf, backdoor=1.0, likeliest=aim)


def told_aim(aim: int, num_classes: int) -> Suspect:
    """An aim in words: a class, or "next"."""
    return aim if aim < num_classes else "next"


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
