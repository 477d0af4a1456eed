"""What NPD takes from its search for the attacker's labels: whom it aims at, and how smooth its perturbations are."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from neural_polarizer.defenses import neural_polarizer as npd
from neural_polarizer.defenses.npd_aims import Aims, find_aims
from neural_polarizer.suspects import CELLS, Effort, SharedAttack, Suspect
from npd_cases import SMALL, polarizer_of, repaired
from toys import tiny_images, tiny_model

EVEN = (-4.0, -4.1, -4.2, -4.3)


def _reaching(margins: tuple[float, ...], following: float = -9.0) -> SharedAttack:
    """An attack with these margins towards the four classes, and ``following`` towards "next" and "previous"."""

    def attack(_rows: Tensor, wanted: Tensor, effort: Effort) -> Tensor:
        wanted = wanted[: effort.samples]
        alike = bool((wanted == wanted[0]).all())
        height = torch.tensor(margins)[wanted] if alike else torch.full((len(wanted),), following)
        return torch.zeros(len(wanted), 4).scatter(1, wanted[:, None], height[:, None])

    return attack


@pytest.mark.parametrize(
    ("fine", "smooth", "following", "suspect", "cells"),
    [
        (EVEN, (-0.5, -0.7, 6.0, -1.0), -9.0, 2, CELLS),
        ((1.0, 9.0, 1.5, 2.0), (0.1, 0.3, 0.2, 0.0), -9.0, 1, None),
        ((1.0, 9.0, 1.5, 2.0), (-0.5, -0.7, 6.0, -1.0), -9.0, 2, CELLS),  # two classes; one of them is further ahead
        # Both searches agree on 0, which does not stand out.
        ((1.0, 0.9, 0.8, 0.7), (2.0, 1.2, 1.0, 0.3), -9.0, None, None),
        (EVEN, (-0.5, -0.7, 6.0, -1.0), 3.0, "next", None),  # no one picture leads each class to the next
    ],
)
def test_perturbations_are_as_smooth_as_what_betrayed_the_suspect(
    fine: tuple[float, ...], smooth: tuple[float, ...], following: float, suspect: Suspect | None, cells: int | None
) -> None:
    features, views = _reaching((-3.0, -3.1, -3.2, -3.3)), {None: _reaching(fine), CELLS: _reaching(smooth)}

    def in_features(rows: Tensor, wanted: Tensor, effort: Effort) -> Tensor:
        # Towards "next" alone, not towards "previous".
        onwards = bool((wanted == (rows + 1) % 4).all())
        return (_reaching(EVEN, following) if onwards else features)(rows, wanted, effort)

    aims, found, audit = find_aims(
        Aims(replace(SMALL, suspect=True), 4),
        torch.arange(40) % 4,
        in_pixels=views.__getitem__,
        in_features=in_features,
        seed=0,
    )
    assert found == suspect
    assert aims.in_pixels == (0 if suspect is None else suspect)
    assert aims.cells == cells
    assert audit is not None
    assert audit.by_class["margin"] == pytest.approx(list(fine))
    assert audit.by_class["margin_smooth"] == pytest.approx(list(smooth))


def test_the_inner_problem_is_solved_as_smoothly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid that is too fine for the images changes nothing, a coarse one does."""
    found = {}
    for cells in (None, 2, 8):
        aims = Aims(SMALL, 4, 1, 1, cells)
        monkeypatch.setattr(npd, "find_aims", lambda *_, aims=aims, **__: (aims, None, None))
        found[cells] = polarizer_of(repaired(tiny_model(), tiny_images(24), SMALL)).mix.weight
    assert torch.allclose(found[8], found[None], atol=1e-6)
    assert not torch.allclose(found[2], found[None], atol=1e-3)


@pytest.mark.parametrize(("features", "alone"), [((-3.0, -3.1, -2.9, -3.3), True), ((-9.0, -9.1, -2.0, -9.3), False)])
def test_features_are_left_alone_where_a_smooth_picture_shows_the_class_more_clearly(
    features: tuple[float, ...], alone: bool
) -> None:
    """The second case is that of a warp, which no picture is."""
    aims, found, _ = find_aims(
        Aims(replace(SMALL, suspect=True, feature_share=0.5), 4),
        torch.arange(40) % 4,
        in_pixels={None: _reaching(EVEN), CELLS: _reaching((-0.5, -0.7, 6.0, -1.0))}.__getitem__,
        in_features=_reaching(features),
        seed=0,
    )
    assert (found, aims.cells, aims.pixels_alone) == (2, CELLS, alone)
    assert aims.feature_share == (0.0 if alone else 0.5)


def test_the_share_in_features() -> None:
    settings = replace(SMALL, suspect=True, feature_share=0.5)
    assert Aims(settings, 4, 1, 1).feature_share == 0.5
    assert Aims(settings, 4, 1, 1, CELLS).feature_share == 0.5
    assert Aims(settings, 4, 1, 1, CELLS, True).feature_share == 0.0
    assert Aims(replace(settings, speed="fast"), 4, 1, 1, CELLS, True).feature_share == 1.0
    assert Aims(settings, 4).feature_share == 1.0
