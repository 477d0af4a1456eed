"""The perturbations for all images at once that an audit tries, in pixels and at the layer's input."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.engine import Engine, Values
from neural_polarizer.perturb import Ball, each_length
from neural_polarizer.suspects import Effort, SharedAttack, attack_in_pixels

_RADIUS, _STRIDE = 0.2, 1.5
"""Of perturbations at the layer's input, in units of each image's norm there; their steps lead so many radii."""


@dataclass(frozen=True, eq=False)
class SharedAttacks:
    """Perturbations that many images have in common, and the labels of the images that they are made for.

    Args:
        pixels: of a radius in L2 to an attack on pixels.
        features: the attack on the layer's input.
        labels: of the clean images, on the device.
        num_classes: K.
    """

    pixels: Callable[[float], SharedAttack]
    features: SharedAttack
    labels: Tensor
    num_classes: int


def shared_attacks(
    model: nn.Module, clean: ImageSet, *, seed: int, device: torch.device | str = "cpu"
) -> SharedAttacks:
    """The attacks on ``model`` as it is: the layer is the identity.

    Raises:
        BadInputError: no images, or labels that the model does not know.
    """
    net = Engine(model, clean, seed=seed, device=device)
    net.calibrate()

    def in_features(rows: Tensor, wanted: Tensor, effort: Effort) -> Tensor:
        values: Values = tuple(value[rows[: effort.samples]] for value in net.values)
        wanted = wanted[: effort.samples]
        lengths = each_length(net.layer_input(values).float())
        shift = torch.zeros(1, *net.features.shape, device=net.device)
        for _ in range(effort.steps):
            point = shift.requires_grad_()
            loss = F.cross_entropy(net.logits(values, lengths * point), wanted, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, point)
            step = _STRIDE * _RADIUS / effort.steps * gradient / each_length(gradient).clamp_min(1e-12)
            shift = Ball("l2", _RADIUS).project(shift.detach() - step)
        with torch.no_grad():
            return net.logits(values, lengths * shift)

    return SharedAttacks(
        lambda radius: attack_in_pixels(net.predict, net.images, radius=radius, fresh=False),
        in_features,
        net.labels,
        net.num_classes,
    )
