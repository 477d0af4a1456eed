"""What the perturbations of Alg. 1 to 3 lead to; arithmetic on labels and clean logits, whatever computes them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.defenses.npd.settings import Target
from neural_polarizer.losses import runner_up


def targets_of(target: Target, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """The class that each image is pushed towards: ``target``, for "next" (y + 1) mod K, for None eq. 4."""
    if target is None:
        return runner_up(logits, labels)
    return (labels + 1) % logits.shape[1] if target == "next" else torch.full_like(labels, target)


@dataclass(frozen=True, eq=False)
class Aim:
    """What the images of a batch that have a part in the adversarial loss are perturbed towards."""

    places: Int64[Tensor, " n"]  # of these images in the batch
    labels: Int64[Tensor, " n"]  # their true ones
    targets: Int64[Tensor, " n"]  # the classes that they are taken to be pushed towards
    predicted: Int64[Tensor, " n"]  # what the polarized network takes the clean images for


def aim_of(target: Target, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Aim:
    """The aim of a batch.

    Where the attacker's class is the true one, L_asr would fight L_bce1: such images stay benign. (The paper does not
    say what becomes of them.)
    """
    found = targets_of(target, logits, labels)
    places = (found != labels).nonzero()[:, 0]
    return Aim(places, labels[places], found[places], logits[places].argmax(dim=1))
