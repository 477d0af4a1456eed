"""What NPD has seen of the attacker's labels, for people to look at."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from neural_polarizer.defenses.base import Audit
from neural_polarizer.suspects import Suspect, clearest, easiest


def reachability_audit(
    features: Float[Tensor, " m"],
    suspect: Suspect | None,
    aim: Suspect,
    *,
    views: Mapping[int | None, Float[Tensor, " k"]] | None = None,
) -> Audit:
    """The margins of ``suspects.reachability`` and what they mean.

    Args:
        features: K + 2 margins of perturbations of what enters the layer.
        suspect: what ``suspects.standing_out`` made of them.
        aim: what perturbations of features aim at.
        views: K margins of perturbations of pixels by the number of cells (``suspects.clearest``), if there are any.
    """
    found, margins = [], {}
    if views is not None:
        cells = clearest(views)
        ranked = sorted(views[cells].tolist(), reverse=True)
        meaning = f"class {suspect} stands out, so it is taken for the attacker's"
        found.append(
            f"One {'' if cells is None else 'smooth '}perturbation for all images pushes them into a class by a margin "
            f"of logits of at most {ranked[0]:.1f}, into the next best class by {ranked[1]:.1f}"
            + (f": {meaning}." if isinstance(suspect, int) else ": no class stands out." if suspect is None else ".")
        )
        margins = {"margin" if each is None else "margin_smooth": values for each, values in views.items()}
    if suspect == "next":
        found.append(
            "What enters the layer is moved more easily towards the class next to each image's own than towards the "
            "one before it: suspicious of an all-to-all backdoor."
        )
    elif suspect is None:
        towards = "the class next to each image's own" if aim == "next" else f"class {aim}"
        alone = aim == easiest(features)
        moved = "What enters the layer is" if alone else "Pixels and what enters the layer, taken together, are"
        found.append(
            f"{moved} moved most easily towards {towards}, so perturbations aim there; a clean model "
            "has such a class, too."
        )
    margins["margin_in_features"] = features[:-2]
    by_class = {
        name: [value if math.isfinite(value) else None for value in values.tolist()] for name, values in margins.items()
    }
    return Audit(" ".join(found), by_class=by_class)
