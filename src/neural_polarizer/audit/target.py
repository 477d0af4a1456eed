"""The attacker's class for methods that must be told it, where nobody knows it."""

from dataclasses import dataclass

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.result import Suspect
from neural_polarizer.defenses.stand_ins.belief import found_in
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.train import Progress, silent

FALLBACK = "npd"


@dataclass(frozen=True)
class ChosenTarget:
    """What ``--target auto`` came to."""

    method: str  # the one that was asked for, or ``FALLBACK``, which needs no target
    target: Suspect | None  # the attacker's class, or "next"; None with ``FALLBACK``
    reason: str  # in a sentence


def choose_target(
    method: str,
    model: nn.Module,
    clean: ImageSet,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> ChosenTarget:
    """The class that the evidence names; where it names none, NPD, which needs no target.

    Args:
        method: "npd-tp" or "npd-tu".
        model: pixels in [0, 1] to logits ``(n, k)``; untouched.
        clean: the defender's images.
        seed: chooses the images.
        device: where to compute.
        progress: told about every step.

    Raises:
        BadInputError: no images, or labels that the model does not know.
    """
    settings = Settings()
    _, found = found_in(model, clean, settings, seed=seed, device=device, progress=progress)
    suspect = found.belief.accused(settings.looks.level)
    said = f"corrected p {found.belief.p_value:.2g}, level {settings.looks.level:g}"
    if suspect is None:
        return ChosenTarget(
            FALLBACK,
            None,
            f"no class stands out ({said}): {FALLBACK} was used, which needs no target (nor does npd-ls)",
        )
    name = "the class next to each image's own" if suspect == "next" else f"class {suspect}"
    return ChosenTarget(method, suspect, f"the audit takes {name} for the attacker's ({said})")
