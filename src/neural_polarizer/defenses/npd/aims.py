"""What the perturbations of Alg. 1 to 3 lead to; arithmetic on labels and clean logits, whatever computes them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.defenses.npd.settings import NPDSettings
from neural_polarizer.errors import BadInputError
from neural_polarizer.losses import runner_up


class RunnerUp:
    """The best class other than the label (eq. 4): NPD, which does not know the attacker's class."""

    def __call__(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return runner_up(logits, labels)


@dataclass(frozen=True)
class Known:
    """The attacker's class (Alg. 2, 3)."""

    target: int

    def __call__(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:  # noqa: ARG002
        return torch.full_like(labels, self.target)


class Next:
    """``(y + 1) mod K``: the attacker's labels in an all-to-all attack."""

    def __call__(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return (labels + 1) % logits.shape[1]


Targets = RunnerUp | Known | Next
"""Clean logits ``(n, k)`` and true labels ``(n,)`` -> the class that each image is pushed towards, ``(n,)``."""


def targets_of(settings: NPDSettings, num_classes: int) -> Targets:
    """The targets of a method.

    Raises:
        BadInputError: the known one lies outside 0..K-1.
    """
    target = settings.target
    if target is None:
        return RunnerUp()
    if target == "next":
        return Next()
    if not 0 <= target < num_classes:
        raise BadInputError(f"the target class must lie in 0..{num_classes - 1}, got {target}")
    return Known(target)


@dataclass(frozen=True, eq=False)
class Aim:
    """What the images of a batch that have a part in the adversarial loss are perturbed towards.

    Args:
        places: of these images in the batch.
        labels: their true ones.
        targets: the classes that they are taken to be pushed towards.
        predicted: what the polarized network takes the clean images for.
    """

    places: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    targets: Int64[Tensor, " n"]
    predicted: Int64[Tensor, " n"]


def aim_of(targets: Targets, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Aim:
    """The aim of a batch.

    Where the attacker's class is the true one, L_asr would fight L_bce1: such images stay benign. (The paper does not
    say what becomes of them.)
    """
    found = targets(logits, labels)
    places = (found != labels).nonzero()[:, 0]
    return Aim(places, labels[places], found[places], logits[places].argmax(dim=1))
