"""Perturbations against triggers: distances known on paper, and what must hold for every network."""

import json
from dataclasses import asdict
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tensor
from torch.testing import assert_close

from neural_polarizer.analysis.distances import (
    VERSIONS,
    PerturbationStudy,
    Search,
    default_sites,
    scatter,
    study_perturbations,
)
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.surgery import Site
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.perturb import Ball
from neural_polarizer.report.pictures import contact_sheet
from toys import hooks, made, snapshot, tiny_images, tiny_model

STEP = Search(Ball("linf", 0.2), steps=1, step_size=0.1)


class ThreeValues(nn.Module):
    """Of an image of two pixels, red (a, b) and the first green c: the logits (0, 4 (a - b), c)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.doubled = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.doubled.weight.copy_(2 * torch.eye(3)[..., None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.doubled(self.features(pixels)) / 2
        a, b, c = features[:, 0, 0, 0], features[:, 0, 0, 1], features[:, 1, 0, 0]
        return torch.stack([torch.zeros_like(a), 4 * (a - b), c], dim=1)


def _values(*images: tuple[int, int, int]) -> Tensor:
    found = torch.full((len(images), 3, 1, 2), 128, dtype=torch.uint8)
    found[:, 0, 0, 0], found[:, 0, 0, 1], found[:, 1, 0, 0] = tensor(images, dtype=torch.uint8).T
    return found


CLEAN = _values((102, 102, 102), (102, 102, 255))  # 0.4, and 1
TRIGGERED = _values((204, 102, 51), (204, 102, 51))  # 0.8, 0.4, 0.2
LABELS, TARGETS = tensor([0, 2]), tensor([1, 1])


def _study(
    model: nn.Module, search: Search = STEP, sites: tuple[Site, ...] | None = None, size: int = 8, **rest: Any
) -> PerturbationStudy:
    images = tiny_images(9, size=size)
    kept = images.select(images.labels != 3)
    triggered = kept.images.clone()
    triggered[:, :, 5:, 5:] = 255
    targets = torch.full_like(kept.labels, 3)
    return study_perturbations(model, kept.images, triggered, kept.labels, targets, search=search, sites=sites, **rest)


def test_distances_by_hand_on_a_network_whose_features_are_the_pixels() -> None:
    """The first image, of class 0: towards 1 it goes a up, b down, c down; away from 0 it goes a up, b down, c up.

    The second one, of class 2, goes the same way in both cases, a up, b down, c down, but not far enough.
    """
    sites = (Site("after", "features"), Site("before", "doubled"), Site("after", "doubled"))
    found = study_perturbations(ThreeValues(), CLEAN, TRIGGERED, LABELS, TARGETS, search=STEP, sites=sites)
    expected = {
        "clean": (sqrt(0.16 + 0.04) + sqrt(0.16 + 0.64)) / 2,
        "targeted": (sqrt(0.09 + 0.01 + 0.01) + sqrt(0.09 + 0.01 + 0.49)) / 2,
        "untargeted": (sqrt(0.09 + 0.01 + 0.09) + sqrt(0.09 + 0.01 + 0.49)) / 2,
    }
    assert [distance.space for distance in found.distances] == ["pixels", *map(str, sites)]
    for distance, scale in zip(found.distances, (1, 1, 1, 2), strict=True):
        numbers = asdict(distance)
        assert {kind: numbers[kind] for kind in expected} == pytest.approx(
            {kind: scale * length for kind, length in expected.items()}, abs=1e-6
        )
        assert distance.ratio == pytest.approx(expected["untargeted"] / expected["targeted"], abs=1e-6)
    assert found.n == 2
    assert (found.triggered_reached, found.targeted_reached, found.untargeted_reached) == (1.0, 0.5, 0.5)


def test_pictures_by_hand() -> None:
    found = study_perturbations(ThreeValues(), CLEAN, TRIGGERED, LABELS, TARGETS, search=STEP, sites=())
    clean, triggered, targeted, untargeted, *changes = found.rows
    assert_close(clean, CLEAN)
    assert_close(triggered, TRIGGERED)
    # 0.5, 0.3 and 0.3 or 0.5 of 255, half to even.
    assert_close(targeted[:1], _values((128, 76, 76)))
    assert_close(untargeted[:1], _values((128, 76, 128)))
    assert [change[0, 1, 0, 0].item() for change in changes] == [96, 0, 255]  # the trigger's largest is 0.8, this 0.2
    assert all(change[0, 2].eq(128).all() for change in changes)
    assert contact_sheet(found.rows, scale=3).startswith(b"\x89PNG")


def test_a_trigger_that_is_hit_exactly_has_no_ratio() -> None:
    whole = Search(Ball("linf", 1.0), steps=1, step_size=1.0)
    found = study_perturbations(
        ThreeValues(), CLEAN[:1], _values((255, 0, 0)), LABELS[:1], TARGETS[:1], search=whole, sites=()
    )
    (pixels,) = found.distances
    assert (pixels.targeted, pixels.untargeted, pixels.ratio) == (0, 1, None)
    assert json.dumps(asdict(pixels), allow_nan=False)


def test_without_a_step_all_three_are_equally_far() -> None:
    for distance in _study(tiny_model(), Search(Ball("l2", 1.0), steps=0, step_size=0.1)).distances:
        assert distance.clean == distance.targeted == distance.untargeted > 0
        assert distance.ratio == 1


def test_no_perturbation_leads_farther_than_its_ball() -> None:
    for distance in _study(tiny_model(), Search(Ball("l2", 0.7), steps=3, step_size=0.2)).distances[:1]:
        assert abs(distance.targeted - distance.clean) <= 0.7
        assert abs(distance.untargeted - distance.clean) <= 0.7
        assert distance.targeted != distance.untargeted


def test_more_steps_reach_more() -> None:
    near, far = (_study(tiny_model(), Search(Ball("l2", 9.0), steps=steps, step_size=0.05)) for steps in (0, 40))
    assert far.targeted_reached == far.untargeted_reached == 1
    assert near.targeted_reached < 1
    assert near.untargeted_reached < 1


def test_what_enters_a_layer_is_what_left_the_one_before() -> None:
    sites = (Site("before", "features.3"), Site("after", "features.2"))
    _, entering, left = _study(tiny_model(), sites=sites).distances
    assert asdict(entering) | {"space": ""} == asdict(left) | {"space": ""}


def test_a_layer_that_works_in_place_does_not_change_what_was_there_before() -> None:
    def network(inplace: bool) -> nn.Module:
        layers = (nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        return made(nn.Sequential(*layers))

    sites = (Site("after", "0"),)
    assert _study(network(True), sites=sites).distances == _study(network(False), sites=sites).distances
    assert (
        _study(network(False), sites=(Site("after", "1"),)).distances[1].clean
        < _study(network(True), sites=sites).distances[1].clean
    )


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("before:layer4.1", ["before:layer4.1", "after:layer4"]),
        ("before:layer4.1.conv1", ["before:layer4.1.conv1", "after:layer4.1"]),
        ("after:layer4", ["after:layer4"]),
        ("before:layer4", ["before:layer4", "after:layer4"]),
    ],
)
def test_the_default_layers_are_the_site_and_its_stage(site: str, expected: list[str]) -> None:
    assert list(map(str, default_sites(Site.parse(site)))) == expected


def test_the_default_of_a_preactresnet18() -> None:
    found = _study(made(PreActResNet18(4, width=2)), size=16)
    spaces = ["pixels", "before:layer4.1", "after:layer4"]
    assert [distance.space for distance in found.distances] == list(found.scatters) == spaces


def test_the_network_is_left_as_it_was_and_its_mode_does_not_matter() -> None:
    model = tiny_model()
    calm = _study(model)
    model.train()
    before = snapshot(model)
    found = _study(model)
    after = snapshot(model)
    assert found.distances == calm.distances
    assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]


def test_batches_and_the_number_of_pictures_change_no_number() -> None:
    many, few = _study(tiny_model()), _study(tiny_model(), shown=2, plotted=3, batch_size=4)
    for one, other in zip(many.distances, few.distances, strict=True):
        assert one.space == other.space
        numbers = [[each.clean, each.targeted, each.untargeted, each.ratio] for each in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
    assert [len(row) for row in many.rows] == [7] * 7
    assert [len(row) for row in few.rows] == [2] * 7
    assert {tuple(points.shape) for points in many.scatters.values()} == {(4, 7, 2)}
    assert {tuple(points.shape) for points in few.scatters.values()} == {(4, 3, 2)}


def test_points_of_a_plane_keep_their_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    features = torch.randn(4, 5, 2, generator=generator, dtype=torch.float64) @ plane + 3
    found = scatter(features)
    flat, points = features.flatten(0, 1), found.flatten(0, 1)
    assert_close(torch.cdist(points, points), torch.cdist(flat, flat))
    assert points[:, 0].var() > points[:, 1].var() > 0
    assert_close(found.mean(dim=(0, 1)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_points_on_a_line_by_hand() -> None:
    """They lie at 0, 5, 5 and -20 along the line, -2.5 on average; the axis is turned so that the last is positive."""
    found = scatter(tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 4.0]], [[-12.0, -16.0]]]))
    assert_close(found[:, 0, 0], tensor([-2.5, -7.5, -7.5, 17.5], dtype=torch.float64))
    assert_close(found[:, :, 1], torch.zeros(4, 1, dtype=torch.float64), rtol=0, atol=1e-6)


def test_points_that_are_all_the_same_stay_so() -> None:
    found = scatter(torch.ones(4, 2, 3))
    assert found.abs().max() == 0


def test_the_scatter_shows_the_versions_in_their_order_and_draws_nothing() -> None:
    model, sites = ThreeValues(), (Site("after", "features"),)
    state = torch.get_rng_state()
    found = study_perturbations(model, CLEAN, TRIGGERED, LABELS, TARGETS, search=STEP, sites=sites)
    assert torch.equal(torch.get_rng_state(), state)
    points = found.scatters["after:features"]
    assert len(points) == len(VERSIONS)
    assert_close(points, found.scatters["pixels"])
    assert_close(points[1, 0], points[1, 1])  # both triggered images are the same
    assert_close(points[2, 1], points[3, 1])  # and so are both perturbations of the second one
    assert (points[2, 0] - points[3, 0]).norm() > 0.1


@pytest.mark.parametrize(
    ("labels", "targets", "match"),
    [
        (tensor([0.0, 2.0]), TARGETS, r"labels must be int64 of shape \(2,\), got torch.float32 \(2,\)"),
        (LABELS, tensor([1]), r"targets must be int64 of shape \(2,\), got torch.int64 \(1,\)"),
        (LABELS, tensor([1, 2]), "1 of 2 images are of their target's class already; leave them out"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, targets: Tensor, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        study_perturbations(ThreeValues(), CLEAN, TRIGGERED, labels, targets, search=STEP)


def test_images_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(BadInputError, match="stamp them first"):
        study_perturbations(ThreeValues(), CLEAN, CLEAN, LABELS, TARGETS, search=STEP)


class _Odd(ThreeValues):
    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Identity()
        self.pair = _Pair()

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(self.features(self.pair(pixels)[0]))


class _Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


@pytest.mark.parametrize(
    ("site", "match"),
    [
        ("after:feetures", "'after:feetures': no such module; the nearest names are features"),
        ("after:features", "'after:features': must run once and have a tensor there, but runs 2 times"),
        ("after:never", "runs 0 times"),
        ("after:pair", "must run once and have a tensor there"),
    ],
)
def test_unusable_sites_are_refused_and_no_hook_stays(site: str, match: str) -> None:
    model = _Odd()
    with pytest.raises(BadInputError, match=match):
        study_perturbations(model, CLEAN, TRIGGERED, LABELS, TARGETS, search=STEP, sites=(Site.parse(site),))
    assert hooks(model) == []


def test_pixels_come_back_from_floats_to_the_last_grey_level() -> None:
    """The rows are made from float pixels: all 256 levels survive."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert_close((to_pixels(levels) * 255).round().to(torch.uint8), levels.contiguous())
