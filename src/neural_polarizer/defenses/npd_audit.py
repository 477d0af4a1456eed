"""What NPD has seen of the attacker's labels, for people to look at."""

import math

from jaxtyping import Float
from torch import Tensor

from neural_polarizer.defenses.base import Audit
from neural_polarizer.suspects import Suspect


def reachability_audit(scores: Float[Tensor, " m"], suspect: Suspect | None) -> Audit:
    """The margins of ``suspects.reachability`` and what they mean.

    Args:
        scores: K + 1 margins.
        suspect: what ``suspects.most_reachable`` made of them.
    """
    margins = scores.tolist()
    ranked = sorted(margins[:-1], reverse=True)
    if suspect is None:
        found = "no class stands out"
    elif suspect == "next":
        found = "and to the class next to its own it gets most images: suspicious of an all-to-all backdoor"
    else:
        found = f"class {suspect} stands out, so it is taken for the attacker's"
    summary = (
        "One perturbation for all images pushes them into a class by a margin of logits of at most "
        f"{ranked[0]:.1f}, into the next best class by {ranked[1]:.1f}: {found}."
    )
    by_class = {"margin": [value if math.isfinite(value) else None for value in margins[:-1]]}
    return Audit(summary, by_class=by_class)
