"""What NPD has seen of the attacker's labels, for people to look at."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from neural_polarizer.defenses.base import Audit
from neural_polarizer.suspects import Suspect


def reachability_audit(
    scores: Mapping[str, Float[Tensor, " m"]], suspect: Suspect | None, feature_aim: Suspect | None
) -> Audit:
    """The margins of ``suspects.reachability`` and what they mean.

    Args:
        scores: K + 1 margins each of perturbations of "pixels" and of "features", or of one of them.
        suspect: what ``suspects.most_reachable`` made of those of pixels.
        feature_aim: what ``suspects.easiest`` made of those of features.
    """
    found = []
    if "pixels" in scores:
        ranked = sorted(scores["pixels"].tolist()[:-1], reverse=True)
        found.append(
            "One perturbation for all images pushes them into a class by a margin of logits of at most "
            f"{ranked[0]:.1f}, into the next best class by {ranked[1]:.1f}: {_meaning(suspect)}."
        )
    if "features" in scores:
        aim = "the class next to each image's own" if feature_aim == "next" else f"class {feature_aim}"
        found.append(f"What enters the layer is moved most easily towards {aim}, so perturbations aim there.")
    by_class = {
        name: [value if math.isfinite(value) else None for value in scores[kind].tolist()[:-1]]
        for kind, name in (("pixels", "margin"), ("features", "margin_in_features"))
        if kind in scores
    }
    return Audit(" ".join(found), by_class=by_class)


def _meaning(suspect: Suspect | None) -> str:
    if suspect is None:
        return "no class stands out"
    if suspect == "next":
        return "and to the class next to its own it gets most images: suspicious of an all-to-all backdoor"
    return f"class {suspect} stands out, so it is taken for the attacker's"
