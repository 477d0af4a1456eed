"""What NPD has seen of the attacker's labels, for people to look at."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from neural_polarizer.defenses.base import Audit
from neural_polarizer.suspects import Suspect, easiest


def reachability_audit(scores: Mapping[str, Float[Tensor, " m"]], suspect: Suspect | None, aim: Suspect) -> Audit:
    """The margins of ``suspects.reachability`` and what they mean.

    Args:
        scores: K + 2 margins of perturbations of "features", and perhaps K of "pixels".
        suspect: what ``suspects.standing_out`` made of them.
        aim: what perturbations of features aim at.
    """
    found = []
    if "pixels" in scores:
        ranked = sorted(scores["pixels"].tolist(), reverse=True)
        meaning = f"class {suspect} stands out, so it is taken for the attacker's"
        found.append(
            "One perturbation for all images pushes them into a class by a margin of logits of at most "
            f"{ranked[0]:.1f}, into the next best class by {ranked[1]:.1f}"
            + (f": {meaning}." if isinstance(suspect, int) else ": no class stands out." if suspect is None else ".")
        )
    if suspect == "next":
        found.append(
            "What enters the layer is moved more easily towards the class next to each image's own than towards the "
            "one before it: suspicious of an all-to-all backdoor."
        )
    elif suspect is None:
        towards = "the class next to each image's own" if aim == "next" else f"class {aim}"
        alone = aim == easiest(scores["features"])
        moved = "What enters the layer is" if alone else "Pixels and what enters the layer, taken together, are"
        found.append(
            f"{moved} moved most easily towards {towards}, so perturbations aim there; a clean model "
            "has such a class, too."
        )
    count = len(scores["features"]) - 2
    by_class = {
        name: [value if math.isfinite(value) else None for value in scores[kind].tolist()[:count]]
        for kind, name in (("pixels", "margin"), ("features", "margin_in_features"))
        if kind in scores
    }
    return Audit(" ".join(found), by_class=by_class)
