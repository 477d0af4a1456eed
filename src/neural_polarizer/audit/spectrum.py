"""What a learned layer does to the features, against the identity that it began as."""

from dataclasses import dataclass

import torch
from torch import nn

from neural_polarizer.layer.folding.edits import Affine
from neural_polarizer.layer.polarizer import Polarizer


@dataclass(frozen=True)
class Spectrum:
    """The layer's linear part A, channels by channels, against the identity I."""

    gains: tuple[float, ...]  # singular values of A, falling; the identity has ones
    # Singular values of A - I, falling; the identity has zeros. A direction of the features that is taken out whole has
    # a 1.
    changes: tuple[float, ...]
    directions: int  # how many directions make up 90 % of the squared change
    distance: float  # Frobenius norm of A - I over that of I


def spectrum(model: nn.Module) -> Spectrum | None:
    """The spectrum of the polarizer inside ``model``; None if there is none, or another structure than ours."""
    found = [module for module in model.modules() if isinstance(module, Polarizer) and module.structure == "conv-bn"]
    if len(found) != 1:
        return None
    with torch.no_grad():
        mix = Affine.of(found[0]).mix
        identity = torch.eye(len(mix), dtype=mix.dtype)
        gains, changes = torch.linalg.svdvals(mix), torch.linalg.svdvals(mix - identity)
    share = changes.square().cumsum(0) / changes.square().sum().clamp_min(1e-30)
    return Spectrum(
        gains=tuple(gains.tolist()),
        changes=tuple(changes.tolist()),
        directions=int((share < 0.9).sum()) + 1,
        distance=float(changes.norm() / len(mix) ** 0.5),
    )
