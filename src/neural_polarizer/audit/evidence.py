"""How easily small changes of clean images lead a model to each class: the raw material of an audit."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.audit.shared import SharedAttacks, shared_attacks
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.inverted_triggers import Inversion
from neural_polarizer.defenses.neural_cleanse import NeuralCleanse
from neural_polarizer.metrics import evaluate
from neural_polarizer.perturb import Ball, perturb
from neural_polarizer.rng import stream
from neural_polarizer.suspects import Effort, SharedAttack, margins
from neural_polarizer.train import Progress, silent

RADIUS = 3.0
SHORTER_RADII = (0.75, 1.5)
OWN_RADII = (0.1, 0.2, 0.4)
"""In L2, pixels in [0, 1], for images of 32 x 32 pixels with 3 channels; they grow with the root of the size."""
IN_FEATURES = Effort(256, 8)
_STEPS = 8
_OWN_STEPS, _OWN_SAMPLES = 5, 32
_MANY_CLASSES = 20
_INVERSION = NeuralCleanse(images=128, epochs=16, batch_size=32, patience=2)


@dataclass(frozen=True, eq=False)
class Margins:
    """How far one perturbation for all images gets, for each aim.

    Args:
        pixels: margins of its images (logit of the label aimed at less the largest other one), ``(m,)`` for each class.
        features: likewise for perturbations of what enters the layer that NPD would insert, and after the classes for
            the class next to each image's own and the one before it.
        accuracy: share of the clean images that the model classifies correctly: margins of a model that does not know
            its classes mean nothing.
    """

    pixels: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    accuracy: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was found out about a model.

    Args:
        margins: of perturbations that all images have in common.
        shared: share of the images of other classes that such a perturbation of pixels sends to a class, by radius,
            ``(k,)`` each; NaN for a class that all images belong to.
        flow: share of the images of class s (row) that the largest of them sends to class t (column), ``(k, k)``; NaN
            on the diagonal and where no image of class s was tried.
        own: share that is sent there by a perturbation made for each image by itself, by radius.
        triggers: the smallest trigger that flips images to each class.
    """

    margins: Margins
    shared: Mapping[float, Float[Tensor, " k"]]
    flow: Float[Tensor, "k k"]
    own: Mapping[float, Float[Tensor, " k"]]
    triggers: Inversion


def collect_margins(
    model: nn.Module,
    clean: ImageSet,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Margins:
    """What a score needs, the quickest part of ``collect``.

    Args:
        model: pixels in [0, 1] to logits ``(n, k)``; untouched.
        clean: the defender's images.
        seed: chooses the images.
        device: where to compute.
        progress: told about every aim.

    Raises:
        BadInputError: no images, or labels that the model does not know.
    """
    attacks = shared_attacks(model, clean, seed=seed, device=device)
    accuracy = _accuracy(model, clean, torch.device(device))
    return _margins(attacks, accuracy, seed, progress)[0]


def collect(
    model: nn.Module,
    clean: ImageSet,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Evidence:
    """All evidence about ``model``; the arguments are those of ``collect_margins``.

    Raises:
        BadInputError: no images, or labels that the model does not know.
    """
    attacks = shared_attacks(model, clean, seed=seed, device=device)
    found, flow = _margins(attacks, _accuracy(model, clean, torch.device(device)), seed, progress)
    count, effort = attacks.num_classes, _in_pixels(attacks.num_classes)
    shared = {
        radius: _success([_towards(attacks, attacks.pixels(radius), effort, seed, aim)[1] for aim in range(count)])
        for radius in SHORTER_RADII
    }
    shared[RADIUS] = _success(found.pixels)
    own = _own(model, clean, attacks, seed, torch.device(device), progress)
    triggers = _INVERSION.invert(model, clean, seed=seed, device=device, progress=progress)
    return Evidence(found, MappingProxyType(shared), flow, MappingProxyType(own), triggers)


def _accuracy(model: nn.Module, clean: ImageSet, device: torch.device) -> float:
    found = evaluate(model, clean, None, device=device).acc
    assert found is not None
    return found


def _margins(attacks: SharedAttacks, accuracy: float, seed: int, progress: Progress) -> tuple[Margins, Tensor]:
    count = attacks.num_classes
    flow = torch.full((count, count), torch.nan)
    pixels, features = [], []
    for aim in range(count + 2):
        if aim < count:
            rows, found = _towards(attacks, attacks.pixels(RADIUS), _in_pixels(count), seed, aim)
            pixels.append(found.cpu())
            flow[:, aim] = _by_source(attacks.labels[rows].cpu(), found.cpu() > 0, count)
        features.append(_towards(attacks, attacks.features, IN_FEATURES, seed, aim)[1].cpu())
        progress("margins", aim + 1, count + 2)
    return Margins(tuple(pixels), tuple(features), accuracy), flow


def _towards(
    attacks: SharedAttacks, attack: SharedAttack, effort: Effort, seed: int, aim: int
) -> tuple[Tensor, Tensor]:
    """Rows and margins, on images that do not depend on the other aims."""
    generator = stream(seed, "audit", aim)
    return margins(attack, attacks.labels, attacks.num_classes, aim, generator=generator, effort=effort)


def _in_pixels(num_classes: int) -> Effort:
    return Effort(64 if num_classes <= _MANY_CLASSES else 32, _STEPS)


def _success(found: Sequence[Tensor]) -> Float[Tensor, " k"]:
    return torch.stack([(each > 0).float().mean().cpu() for each in found])  # NaN of no images


def _by_source(labels: Tensor, reached: Tensor, count: int) -> Float[Tensor, " k"]:
    total = torch.bincount(labels, minlength=count)
    return torch.bincount(labels, weights=reached.double(), minlength=count).float() / total


def _own(
    model: nn.Module, clean: ImageSet, attacks: SharedAttacks, seed: int, device: torch.device, progress: Progress
) -> dict[float, Tensor]:
    """Perturbations that each image has for itself, towards each class."""
    count, labels = attacks.num_classes, attacks.labels
    frozen = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    values = clean.images[0].numel()
    found: dict[float, list[Tensor]] = {radius: [] for radius in OWN_RADII}
    for aim in range(count):
        others = (labels != aim).nonzero()[:, 0].cpu()
        rows = others[torch.randperm(len(others), generator=stream(seed, "audit own", aim))[:_OWN_SAMPLES]]
        pixels = to_pixels(clean.images[rows].to(device))
        wanted = torch.full((len(rows),), aim, device=device)
        for radius, reached in found.items():
            length = radius * (values / 3072) ** 0.5
            delta = perturb(
                frozen,
                pixels,
                wanted,
                ball=Ball("l2", length),
                steps=_OWN_STEPS,
                step_size=length / 2 / values**0.5,
                rule="gradient",
            )
            with torch.no_grad():
                hit = frozen((pixels + delta).clamp(0, 1)).argmax(dim=1) == wanted
            reached.append(hit.float().mean().cpu())
        progress("own perturbations", aim + 1, count)
    return {radius: torch.stack(reached) for radius, reached in found.items()}
