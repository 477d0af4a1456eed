"""The figures' cells: what is looked at, and the pictures of it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from neural_polarizer.analysis.distances import VERSIONS, Search, study_perturbations
from neural_polarizer.analysis.gradcam import compare_cams
from neural_polarizer.analysis.lemma1 import check_lemma1
from neural_polarizer.attacks.base import LearnedTrigger
from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses import NPD, Defense
from neural_polarizer.errors import BadInputError, needing
from neural_polarizer.perturb import Ball
from neural_polarizer.report.pictures import contact_sheet

Pictures = dict[str, bytes]
LOOKED_AT = 1000
_SHOWN = 8
_SIDE = 96  # pixels of an image in a contact sheet
_MARKERS = ("o", "x", "^", "s")


def lemma1(seed: int) -> tuple[dict[str, Any], Pictures]:
    """The numerical check of Lemma 1 (appendix A.3), and its curve."""
    found = check_lemma1(seed)
    lines: dict[str, Sequence[float | None]] = {
        "largest covariance with the poison": [point.covariance for point in found.curve],
        "accuracy on clean samples": [point.accuracy for point in found.curve],
        "poisoned samples labelled as the target": [point.success for point in found.curve],
    }
    picture = curve_png([point.t for point in found.curve], lines, "t, from the identity (0) to the projection (1)")
    result = {
        **asdict(found),
        "covariance_before": found.before.covariance,
        "covariance_after": found.after.covariance,
        "accuracy_before": found.before.accuracy,
        "accuracy_after": found.after.accuracy,
    }
    return result, {"lemma1.png": picture}


def distances(
    model: nn.Module, defense: Defense, test: ImageSet, trigger: LearnedTrigger, device: torch.device
) -> tuple[dict[str, Any], Pictures]:
    """Targeted and untargeted perturbations against the trigger, in pixels and features (Fig. 4)."""
    if not isinstance(defense, NPD):
        raise BadInputError("distances are those of NPD's perturbations: its defense must be of the NPD family")
    clean, triggered, labels, targets = _pairs(test, trigger)
    search = Search(Ball(defense.norm, defense.radii[0]), defense.steps, defense.step_size, defense.step_rule)
    found = study_perturbations(model, clean, triggered, labels, targets, search=search, shown=_SHOWN, device=device)
    result = {
        "n": found.n,
        "distances": [asdict(each) for each in found.distances],
        "triggered_reached": found.triggered_reached,
        "targeted_reached": found.targeted_reached,
        "untargeted_reached": found.untargeted_reached,
        "distance_targeted": found.distances[1].targeted,
        "distance_untargeted": found.distances[1].untargeted,
        "distance_ratio": found.distances[1].ratio,
    }
    sheet = contact_sheet(found.rows, scale=max(1, _SIDE // test.image_size[0]))
    plots = {
        f"scatter-{place}.png": scatter_png(
            {version: points.tolist() for version, points in zip(VERSIONS, each, strict=True)}, space
        )
        for place, (space, each) in enumerate(found.scatters.items())
    }
    return result, {"images.png": sheet, **plots}


def gradcam(
    before: nn.Module, after: nn.Module, test: ImageSet, trigger: LearnedTrigger, device: torch.device
) -> tuple[dict[str, Any], Pictures]:
    """Where the network looks before and after a defense (Figs. 5 to 7)."""
    clean, triggered, _, _ = _pairs(test, trigger)
    found = compare_cams(before, after, clean, triggered, shown=_SHOWN, device=device)
    result = {
        "n": len(clean),
        "layer": found.layer,
        "trigger_area": sum(found.areas) / len(found.areas),
        "cam_in_trigger_before": found.before.mean,
        "cam_in_trigger_after": found.after.mean,
    }
    return result, {"cams.png": contact_sheet(found.rows, scale=max(1, _SIDE // test.image_size[0]))}


def _pairs(test: ImageSet, trigger: LearnedTrigger) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Test images that the attacker relabels, evenly spread: clean, triggered, their classes, the attacker's."""
    targets = trigger.relabel(test.labels, test.num_classes)
    rows = (targets != test.labels).nonzero()[:, 0]
    rows = rows[:: max(1, len(rows) // LOOKED_AT)][:LOOKED_AT]
    clean = test.images[rows]
    return clean, trigger.stamp(clean), test.labels[rows], targets[rows]


def curve_png(x: Sequence[float], lines: Mapping[str, Sequence[float | None]], label: str) -> bytes:
    """Lines over a common axis, by name; None is a gap."""
    figure, axes = _axes()
    for name, values in lines.items():
        axes.plot(x, [float("nan") if value is None else value for value in values], label=name)
    axes.set_xlabel(label)
    axes.legend(frameon=False)
    return _png(figure)


def scatter_png(groups: Mapping[str, Sequence[Sequence[float]]], title: str) -> bytes:
    """Groups of points in the plane, by name."""
    figure, axes = _axes()
    for marker, (name, points) in zip(_MARKERS, groups.items(), strict=False):
        axes.scatter(*zip(*points, strict=True), s=10, marker=marker, label=name)
    axes.set_title(f"{title}: two principal components")
    axes.legend(frameon=False)
    return _png(figure)


def _axes() -> tuple[Any, Any]:
    with needing("bench"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
