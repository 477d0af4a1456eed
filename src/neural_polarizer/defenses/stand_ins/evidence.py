"""The evidence about a network, whoever asks: the defense, an audit, or ``--target auto``."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.stand_ins.belief import Belief, told_aim
from neural_polarizer.defenses.stand_ins.looks import Found, look
from neural_polarizer.defenses.stand_ins.seen import at_last_map, engine_at, seen
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.progress import Progress, silent


def found_in(
    model: nn.Module,
    clean: ImageSet,
    settings: Settings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> tuple[Engine, Found]:
    """What the clean images tell about ``model``, which is untouched: what the defense finds where it looks first.

    ``model`` maps float pixels in [0, 1] to logits ``(n, k)``; the ``settings`` are those of the defense. Returns the
    network with the layer as the identity, and what was found.

    Raises:
        BadInputError: no images, an unknown or unusable site, or a class count that does not fit.
    """
    net, _ = engine_at(settings, model, clean, settings.site, seed=seed, device=device)
    last = at_last_map(settings, model, clean, net, seed=seed, device=device)
    return net, look(seen(net, settings.batch_size), last, settings, seed=seed, told=progress)


def summary(belief: Belief, level: float) -> str:
    """The evidence in a sentence."""
    if bool((belief.by_aim >= 1).all()):
        return "there are too few classes for one of them to stand out"
    aim = told_aim(belief.likeliest, len(belief.aims) - 1)
    name = "the class next to each image's own" if aim == "next" else f"class {aim}"
    faint = f"is the most suspicious one, but does not stand out at the level of {level:g}"
    verdict = "stands out" if belief.p_value < level else faint
    return f"{name} {verdict} (corrected p {belief.p_value:.2g}, probability of a backdoor {belief.backdoor:.2f})"


def by_class(found: Found, num_classes: int) -> Mapping[str, Sequence[float | None]]:
    """What was found, one value a class: norms, gains, the p-value of all of them together, and the belief."""
    told = {f"norm_{name}": values for name, values in found.norms.items()}
    told |= {f"gain_{name}": values for name, values in found.gains.items()}
    measured = {name: [_number(each) for each in values] for name, values in told.items()}
    rest = {"p": found.belief.by_aim, "belief": found.belief.aims}
    return {**measured, **{name: values[:num_classes].tolist() for name, values in rest.items()}}


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
