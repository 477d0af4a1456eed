"""The class that is easiest to reach."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.data.images import ImageSet
from neural_polarizer.rng import stream
from neural_polarizer.suspects import (
    Effort,
    Suspect,
    aim_of_pixels,
    attack_in_pixels,
    clearest,
    easiest,
    lead_of_class,
    pixel_steps,
    reachability,
    standing_out,
)
from toys import tiny_images


def margins(predict: Callable[[Tensor], Tensor], clean: ImageSet, *, steps: int = 8) -> Tensor:
    attack = attack_in_pixels(predict, clean.images)
    return reachability(
        attack, clean.labels, 4, generator=stream(0, "suspects"), effort=Effort(32, steps), neighbours=True
    )


class Doors(nn.Module):
    """Class k of 4 sees how bright row k is, and ``widest`` times as strongly as the others if it is the chosen one."""

    def __init__(self, chosen: int, widest: float) -> None:
        super().__init__()
        self.gain = torch.ones(4)
        self.gain[chosen] = widest

    def forward(self, pixels: Tensor) -> Tensor:
        return self.gain * pixels[:, :, :4].mean(dim=(1, 3))


def test_the_class_with_the_widest_door_is_found() -> None:
    clean = tiny_images(40)
    for chosen in range(4):
        scores = margins(Doors(chosen, 8.0), clean)
        assert standing_out(scores[:4], scores) == easiest(scores) == chosen
        assert scores.shape == (6,)
    even = margins(Doors(0, 1.0), clean)
    assert float(even[:4].max() - even[:4].min()) < 0.1
    assert standing_out(even[:4], even) is None


class Turntable(nn.Module):
    """Rows 0 to 3 of the red channel say the class; green light turns every class into the next one."""

    def forward(self, pixels: Tensor) -> Tensor:
        evidence, turn = pixels[:, 0, :4].mean(dim=2), pixels[:, 1].mean(dim=(1, 2))[:, None]
        return 40 * (evidence * (0.1 - turn) + evidence.roll(1, dims=1) * turn)


def test_shapes_and_types_are_checked_while_tests_run() -> None:
    """What conftest.py installs must reach the package."""
    with pytest.raises(TypeCheckError):
        lead_of_class(torch.ones(4, dtype=torch.int64))


def test_an_all_to_all_rule_is_found() -> None:
    labels = torch.arange(40) % 4
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    images[torch.arange(40), 0, labels] = 255
    assert Turntable()(images / 255).argmax(dim=1).equal(labels)
    found = margins(Turntable(), ImageSet(images, labels, ("a", "b", "c", "d"), "turntable"))
    assert standing_out(found[:4], found) == easiest(found) == "next"


def test_a_class_is_approached_from_the_others_and_one_that_is_all_there_is_cannot_be() -> None:
    seen: list[Tensor] = []

    def watch(pixels: Tensor) -> Tensor:
        seen.append(pixels.detach())
        return Doors(0, 1.0)(pixels)

    clean = tiny_images(8)
    margins(watch, clean, steps=1)
    assert [len(pixels) for pixels in seen] == [6] * 8 + [8] * 4
    alone = clean.select(clean.labels == 2)
    scores = margins(watch, alone)
    assert scores[2] == -torch.inf
    assert bool(scores[[0, 1, 3, 4]].isfinite().all())


def test_each_step_sees_other_images_and_the_judges_are_none_of_them_if_there_are_enough() -> None:
    seen: list[Tensor] = []

    def watch(pixels: Tensor) -> Tensor:
        seen.append(pixels.detach()[:, 0, -1, -1])
        return Doors(0, 1.0)(pixels)

    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    images[:, :, -1, -1] = torch.arange(20, dtype=torch.uint8)[:, None] * 10  # a place that no class looks at
    rows, effort = torch.arange(20), Effort(5, 3)
    attack_in_pixels(watch, images)(rows, torch.ones_like(rows), effort)
    names = [(values * 25.5).round().int().tolist() for values in seen]
    assert names == [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19], [0, 1, 2, 3, 4]]
    seen.clear()
    attack_in_pixels(watch, images, fresh=False)(rows, torch.ones_like(rows), effort)
    assert [(values * 25.5).round().int().tolist() for values in seen] == [[0, 1, 2, 3, 4]] * 4
    assert [step.places.tolist() for step in pixel_steps(3, 192, Effort(2, 3))] == [[2, 0], [1, 2], [0, 1]]
    assert [step.places.tolist() for step in pixel_steps(1, 192, Effort(2, 1))] == [[0]]


@pytest.mark.parametrize(("fresh", "share"), [(True, 0.75), (False, 1.0)])
def test_steps_begin_with_half_the_radius_and_shorten(fresh: bool, share: float) -> None:
    """All gradients point the same way: two steps lead 1/2 + 1/4 of the radius far, or 1/2 + 1/2."""
    seen: list[Tensor] = []

    def brighter(pixels: Tensor) -> Tensor:
        seen.append(pixels.detach())
        mean = pixels.mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], dim=1)

    images, rows = torch.full((6, 3, 8, 8), 51, dtype=torch.uint8), torch.arange(6)
    attack_in_pixels(brighter, images, radius=4.0, fresh=fresh)(rows, torch.zeros_like(rows), Effort(2, 2))
    assert_close((seen[-1][0] - 0.2).norm(), torch.tensor(share))  # an 8 x 8 image has a quarter of the radius


def test_the_radius_is_kept_and_grows_with_the_image() -> None:
    """Black images: the perturbation is all that the network sees."""
    for size in (8, 16):
        seen: list[Tensor] = []

        def watch(pixels: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(pixels.detach())
            return Doors(0, 1.0)(pixels)

        images = torch.zeros(6, 3, size, size, dtype=torch.uint8)
        margins(watch, ImageSet(images, torch.zeros(6, dtype=torch.int64), ("a", "b", "c", "d"), "black"))
        longest = max(float(pixels[0].norm()) for pixels in seen)
        limit = 5 * (3 * size * size / 3072) ** 0.5
        assert limit / 2 < longest <= limit * 1.0001


@pytest.mark.parametrize(
    ("pixels", "features", "suspect"),
    [
        ((24.4, 4.9, 4.5), (-2.5, -3.6, -4.2, -6.0, -6.0), 0),  # BadNets on VGG19-BN
        ((24.4, 4.9, 4.5), (-3.6, -2.5, -4.2, -6.0, -6.0), 0),  # features lead elsewhere
        ((4.4, 4.4, 4.2), (-6.5, -6.7, -8.9, -2.2, -6.8), "next"),  # BadNets, all-to-all
        ((5.6, 3.8, 3.0), (-1.5, -2.1, -2.6, -1.9, -4.0), "next"),  # one class is easier
        ((14.3, 7.0, 6.1), (-15.0, -15.0, -18.0, -12.9, -12.9), 0),  # neighbours look alike: VGG19-BN, Blended
        ((12.5, 7.8, 7.1), (-15.0, -12.1, -11.7, -14.0, -14.0), None),  # a clean model of GTSRB: stop signs
        ((6.0, 5.8, -torch.inf, 5.1), (-3.1, -3.9, -torch.inf, -4.9, -2.0, -3.0), "next"),
        ((6.0, 5.8, -torch.inf, 5.1), (-3.1, -3.9, -torch.inf, -4.9, -2.0, -2.5), None),
        ((0.18, 0.02, -0.04, -0.9), (-2.5, -3.6, -4.2, -4.5, -6.0, -6.0), None),  # a clean model, smooth perturbations
        ((6.0, -0.5, -0.7, -1.0), (-2.5, -3.6, -4.2, -4.5, -6.0, -6.0), 0),  # all others are on the wrong side
        ((9.6, 0.3, -1.0, -0.5), (1.6, 1.6, 1.5, 0.4, -3.0, -4.0), 0),  # "next" leads by less: DenseNet-161
        ((9.0, 2.8, 5.1), (-4.2, -3.6, -2.5, -1.0, -6.0), "next"),  # a class stands out, but "next" is further ahead
        ((-1.0, -3.0, -3.0), (-2.5, -3.6, -4.2, -6.0, -6.0), None),  # nothing is reached at all
        ((1.0, -3.0, -torch.inf), (-2.5, -3.6, -torch.inf, -1.0, -6.0), 0),  # two classes have no spread
    ],
)
def test_only_what_stands_out_is_accused(
    pixels: tuple[float, ...], features: tuple[float, ...], suspect: object
) -> None:
    assert standing_out(torch.tensor(pixels), torch.tensor(features)) == suspect


@pytest.mark.parametrize(
    ("pixels", "features", "aim"),
    [
        ((6.0, 2.8, 5.1), (-4.2, -3.6, -2.5, -6.0, -6.0), None),  # each search has its own class
        ((6.0, 2.8, 5.1), (-2.5, -3.6, -4.2, -6.0, -6.0), 0),  # nothing stands out, but both say 0
        ((7.1, 2.8, 5.9), (-6.4, -8.5, -6.36, -8.9, -8.6), 0),  # a tie in features: Inception-V3, Blended
        ((8.4, 9.2, 2.0), (-1.2, -2.6, -2.3, -4.0, -4.0), 0),  # a tie in pixels: LF on CIFAR-10
        ((6.0, 2.8, 5.1), (-2.8, -3.6, -2.5, -6.0, -6.0), None),  # 0.65 standard deviations behind
        ((9.0, 2.8, 5.1), (-4.2, -3.6, -2.5, -6.0, -6.0), 0),  # the suspect, whatever features say
        ((9.0, 2.8, 5.1), (-4.2, -3.6, -2.5, -1.0, -6.0), "next"),
        ((math.nan,) * 3, (math.nan,) * 5, None),  # a warm-up that diverged
    ],
)
def test_pixels_aim_at_the_suspect_or_where_both_searches_agree(
    pixels: tuple[float, ...], features: tuple[float, ...], aim: Suspect | None
) -> None:
    assert aim_of_pixels(torch.tensor(pixels), torch.tensor(features)) == aim


@pytest.mark.parametrize(
    ("features", "aim"), [((-4.0, -2.0, -3.0, -2.5, -2.4), 1), ((-4.0, -2.0, -3.0, -2.5, -4.0), "next")]
)
def test_the_easiest_aim_need_not_stand_out(features: tuple[float, ...], aim: Suspect) -> None:
    assert easiest(torch.tensor(features)) == aim


class Rows(nn.Module):
    """Class k of 32 sees how bright row k is; one class sees it more strongly."""

    def __init__(self, chosen: int) -> None:
        super().__init__()
        self.gain = torch.ones(32)
        self.gain[chosen] = 4.0

    def forward(self, pixels: Tensor) -> Tensor:
        return self.gain * pixels.mean(dim=(1, 3))


@pytest.mark.parametrize("chosen", [0, 7, 31])
def test_a_first_round_saves_most_of_the_work_and_finds_the_same_class(chosen: int) -> None:
    clean = tiny_images(64, num_classes=32, size=32)
    passes: list[int] = []

    def predict(pixels: Tensor) -> Tensor:
        passes.append(len(pixels))
        return Rows(chosen)(pixels)

    attack, found = attack_in_pixels(predict, clean.images), []
    for first in (Effort(16, 3), None):
        generator = stream(0, "rounds")
        search = partial(reachability, attack, clean.labels, 32, generator=generator, effort=Effort(32, 8))
        found.append(search(first=first, finalists=6))
        passes.append(0)
    work = [sum(passes[: passes.index(0)]), sum(passes[passes.index(0) :])]
    assert int(found[0].argmax()) == int(found[1].argmax()) == chosen
    assert_close(found[0][chosen], found[1][chosen], rtol=0.1, atol=0.0)
    assert work[0] < 0.7 * work[1]


@pytest.mark.parametrize(
    ("fine", "coarse", "cells"),
    [
        ((4.95, 5.42, 5.6, 4.1), (5.99, -0.52, -0.72, -0.9), 8),  # Inception-V3, Blended
        ((46.6, 5.4, 4.0, 3.1), (8.7, 0.4, -0.2, -0.9), None),  # VGG19, BadNets: both see it, one of them more
        ((15.8, 12.0, 9.3, 6.8), (-2.7, 0.36, -0.18, -0.18), None),  # Trojan
        ((5.0, 4.8, 4.7, -torch.inf), (5.0, 1.0, 0.5, -torch.inf), 8),  # no images of a class
        ((5.0, 4.8), (5.0, 1.0), None),  # two classes have no spread
        ((math.nan,) * 4, (math.nan,) * 4, None),
    ],
)
def test_the_search_in_pixels_is_read_where_one_class_is_furthest_ahead(
    fine: tuple[float, ...], coarse: tuple[float, ...], cells: int | None
) -> None:
    assert clearest({None: torch.tensor(fine), 8: torch.tensor(coarse)}) == cells
