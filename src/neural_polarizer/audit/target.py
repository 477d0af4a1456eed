"""The attacker's class for methods that must be told it, where nobody knows it."""

from dataclasses import dataclass

import torch
from torch import nn

from neural_polarizer.audit.evidence import collect_margins
from neural_polarizer.audit.score import confident_suspect, score
from neural_polarizer.data.images import ImageSet
from neural_polarizer.suspects import Suspect
from neural_polarizer.train import Progress, silent

FALLBACK = "npd"


@dataclass(frozen=True)
class ChosenTarget:
    """What ``--target auto`` came to.

    Args:
        method: the one that was asked for, or ``FALLBACK``, which needs no target.
        target: the attacker's class, or "next"; None with ``FALLBACK``.
        reason: in a sentence.
    """

    method: str
    target: Suspect | None
    reason: str


def choose_target(
    method: str,
    model: nn.Module,
    clean: ImageSet,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> ChosenTarget:
    """The suspect of an audit if its verdict is "backdoor"; otherwise NPD, which needs none.

    Args:
        method: "npd-tp" or "npd-tu".
        model: pixels in [0, 1] to logits ``(n, k)``; untouched.
        clean: the defender's images.
        seed: chooses the images.
        device: where to compute.
        progress: told about every aim.

    Raises:
        BadInputError: no images, or labels that the model does not know.
    """
    found = score(collect_margins(model, clean, seed=seed, device=device, progress=progress), seed=seed)
    suspect = confident_suspect(found)
    said = found.unusable or f"score {found.value:.1f}, 90 % interval {found.low:.1f} to {found.high:.1f}"
    if suspect is None:
        return ChosenTarget(
            FALLBACK,
            None,
            f"the audit names no class with confidence ({said}): {FALLBACK} was used (npd-ls needs no target)",
        )
    name = "the class next to each image's own" if suspect == "next" else f"class {suspect}"
    return ChosenTarget(method, suspect, f"the audit takes {name} for the attacker's ({said})")
