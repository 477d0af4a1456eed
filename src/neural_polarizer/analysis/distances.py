"""How near targeted and untargeted perturbations come to the trigger, in pixels and features (paper Fig. 4)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from neural_polarizer.analysis.inputs import check_pairs, frozen_copy
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.sites import default_site
from neural_polarizer.layer.surgery import Site, full_name
from neural_polarizer.metrics import share
from neural_polarizer.models.layers import watching
from neural_polarizer.perturb import Ball, StepRule, clip, perturb
from neural_polarizer.report.pictures import amplify

VERSIONS = ("clean", "triggered", "targeted", "untargeted")
"""The four versions of every image, in the order in which all tensors here have them."""

PIXELS = "pixels"
"""The name of the space of the images themselves."""


@dataclass(frozen=True)
class Search:
    """What both kinds of perturbation have in common, by the names that ``perturb`` has for it."""

    ball: Ball  # the constraint on each perturbation
    steps: int  # of projected gradient descent
    step_size: float  # in pixel units of [0, 1]
    rule: StepRule = "sign"  # how a step follows from the gradient; see ``perturb``


@dataclass(frozen=True)
class Distance:
    """Mean L2 distances from the triggered images, over the images."""

    space: str  # PIXELS, or the site whose feature map is compared, such as ``after:layer4``
    clean: float  # of the clean images
    targeted: float  # of those perturbed towards the target
    untargeted: float  # of those perturbed away from their class
    # ``untargeted / targeted``, above 1 if targeted perturbations are the better stand-in for the trigger; None if they
    # hit the triggered images exactly.
    ratio: float | None


@dataclass(frozen=True, eq=False)
class PerturbationStudy:
    """What two kinds of perturbation have in common with a trigger."""

    n: int  # number of images
    distances: tuple[Distance, ...]  # one for the pixels, then one for each site
    triggered_reached: float  # share of the triggered images that are classified as their target
    targeted_reached: float  # the same of the targeted perturbations
    untargeted_reached: float  # share of the untargeted perturbations that are not classified as their true class
    # The first two principal components of all versions together, float64 ``(4, m, 2)``, for the space of each of
    # ``distances``.
    scatters: Mapping[str, Tensor]
    # For a contact sheet, uint8 ``(m, 3, h, w)`` each: the four VERSIONS, then what the last three change, each row
    # amplified by its own largest change.
    rows: tuple[Tensor, ...]


def study_perturbations(
    backdoored: nn.Module,
    clean: Tensor,
    triggered: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    search: Search,
    sites: Sequence[Site] | None = None,
    shown: int = 8,
    plotted: int = 100,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> PerturbationStudy:
    """Perturb clean images with and without a target, and compare both, clipped, with the triggered images.

    Args:
        backdoored: pixels in [0, 1] to logits; untouched.
        clean: uint8 ``(n, 3, h, w)``.
        triggered: the same images with the trigger.
        labels: int64 ``(n,)``, the true classes.
        targets: int64 ``(n,)``, the attacker's class for each image, never its true one.
        search: how both kinds of perturbation are found.
        sites: where feature maps are compared; None: ``default_sites`` of the network's default site.
        shown: images in ``rows``, from the first on.
        plotted: images in ``scatters``, likewise.
        device: where to compute; results are on the CPU.
        batch_size: images in a pass.

    Raises:
        BadInputError: images that are no pairs, labels that do not fit, or a site without a single tensor.
    """
    _check(clean, triggered, labels, targets)
    frozen, data = frozen_copy(backdoored, device), (clean, triggered, labels, targets)
    places = default_sites(default_site(frozen, to_pixels(clean[:2].to(device)))) if sites is None else sites
    versions, answers, lengths = _by_batches(frozen, places, data, search, batch_size, device)
    return PerturbationStudy(
        n=len(clean),
        distances=tuple(_distance(space, each) for space, each in lengths.items()),
        triggered_reached=share(answers[1] == targets),
        targeted_reached=share(answers[2] == targets),
        untargeted_reached=share(answers[3] != labels),
        scatters={space: scatter(each) for space, each in _look(frozen, places, versions[:, :plotted])[1].items()},
        rows=_rows(versions[:, :shown].cpu()),
    )


def _by_batches(
    model: nn.Module,
    sites: Sequence[Site],
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    search: Search,
    batch_size: int,
    device: torch.device | str,
) -> tuple[Float[Tensor, "4 n 3 h w"], Int64[Tensor, "4 n"], dict[str, Float[Tensor, "4 n"]]]:
    """The versions as float pixels, on the device; on the CPU their classes, and their distances from the triggered.

    The versions are the images as they are, triggered, perturbed towards their targets and away from their labels.
    """
    lengths: dict[str, list[Tensor]] = defaultdict(list)
    versions, answers = [], []
    for batch in zip(*(part.split(batch_size) for part in data), strict=True):
        clean, triggered, labels, targets = (part.to(device) for part in batch)
        pixels, stamped = to_pixels(clean), to_pixels(triggered)
        versions.append(torch.stack([pixels, stamped, *_perturbed(model, pixels, labels, targets, search)]))
        logits, spaces = _look(model, sites, versions[-1])
        answers.append(logits.argmax(dim=2).cpu())
        for space, values in spaces.items():
            lengths[space].append((values - values[1]).norm(dim=2).cpu())
    together = {space: torch.cat(parts, dim=1) for space, parts in lengths.items()}
    return torch.cat(versions, dim=1), torch.cat(answers, dim=1), together


def default_sites(site: Site) -> tuple[Site, ...]:
    """The layer's site, and the output of the stage that it is in: ``after:layer4`` for ``before:layer4.1``."""
    stage = site.name.rpartition(".")[0] or site.name
    return tuple(dict.fromkeys((site, Site("after", stage))))


def scatter(features: Float[Tensor, "k m d"]) -> Float64[Tensor, "k m 2"]:
    """Two principal components of k groups of m vectors together; the largest coordinate along each is positive."""
    vectors = features.detach().cpu().double().flatten(0, 1)
    centred = vectors - vectors.mean(dim=0)
    # The Gram matrix is far smaller than the features are long; torch.pca_lowrank draws from the global generator.
    squares, directions = torch.linalg.eigh(centred @ centred.T)
    squares = squares.flip(0).clamp_min(0)
    points = directions.flip(1)[:, :2] * squares[:2].sqrt()
    largest = points.gather(0, points.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -points, points).unflatten(0, features.shape[:2])


def _check(clean: Tensor, triggered: Tensor, labels: Tensor, targets: Tensor) -> None:
    check_pairs(clean, triggered)
    count = len(clean)
    for name, values in (("labels", labels), ("targets", targets)):
        if values.dtype != torch.int64 or values.shape != (count,):
            raise BadInputError(f"{name} must be int64 of shape ({count},), got {values.dtype} {tuple(values.shape)}")
    same = int((labels == targets).sum())
    if same:
        raise BadInputError(f"{same} of {count} images are of their target's class already; leave them out")


def _perturbed(
    model: nn.Module,
    pixels: Float[Tensor, "n 3 h w"],
    labels: Int64[Tensor, " n"],
    targets: Int64[Tensor, " n"],
    search: Search,
) -> tuple[Tensor, Tensor]:
    """The images perturbed towards their targets, and away from their labels."""

    def found(aim: Tensor, targeted: bool) -> Tensor:
        return clip(pixels + perturb(model, pixels, aim, targeted=targeted, **vars(search)))

    return found(targets, True), found(labels, False)


@torch.no_grad()
def _look(
    model: nn.Module, sites: Sequence[Site], versions: Float[Tensor, "4 n 3 h w"]
) -> tuple[Float[Tensor, "4 n k"], dict[str, Float[Tensor, "4 n _"]]]:
    """The logits, and what is found in each space, an image's values in a row."""
    seen: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        # Copies, since the next layer may work in place.
        seen[name].append((_copied(inputs[0]) if inputs else None, _copied(output)))

    names = {site: full_name(model, site) for site in sites}
    with watching(model, dict.fromkeys(names.values()), note):
        logits = model(versions.flatten(0, 1))
    spaces = {PIXELS: versions.flatten(2)}
    for site, name in names.items():
        value = seen[name][0][site.side == "after"] if len(seen[name]) == 1 else None
        if not isinstance(value, Tensor):
            raise BadInputError(
                f"site {str(site)!r}: must run once and have a tensor there, but runs {len(seen[name])} times"
            )
        spaces[str(site)] = value.flatten(1).unflatten(0, versions.shape[:2])
    return logits.unflatten(0, versions.shape[:2]), spaces


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _distance(space: str, lengths: Float[Tensor, "4 n"]) -> Distance:
    clean, _, targeted, untargeted = lengths.double().mean(dim=1).tolist()
    return Distance(space, clean, targeted, untargeted, untargeted / targeted if targeted > 0 else None)


def _rows(versions: Float[Tensor, "4 n 3 h w"]) -> tuple[Tensor, ...]:
    pictures = (versions * 255).round().to(torch.uint8)
    return (*pictures, *(amplify(version - versions[0]) for version in versions[1:]))
