"""The fast mode of NPD: what it has in common with the exact one, and what not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.npd_fast import Carried
from neural_polarizer.errors import BadInputError
from neural_polarizer.perturb import Ball, clip, perturb
from neural_polarizer.rng import stream
from neural_polarizer.suspects import quick_reachability, reachability
from npd_cases import FAST, SMALL, polarizer_of, repaired
from toys import assert_same, tiny_images, tiny_model

BALL = Ball("l2", 1.0)


def carried(images: Tensor, *, targeted: bool = True) -> Carried:
    return Carried(images, step_size=0.02, targeted=targeted, rule="gradient", first_steps=3)


@pytest.fixture
def frozen() -> nn.Module:
    return tiny_model().requires_grad_(False)


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_visits_of_a_network_that_stays_the_same_are_the_steps_of_the_inner_problem(
    frozen: nn.Module, targeted: bool, shared: bool
) -> None:
    clean = tiny_images(12)
    pixels, rows, aims = to_pixels(clean.images), torch.arange(12), (clean.labels + 1) % 4
    state = carried(clean.images, targeted=targeted)
    for visit in range(3):
        logits = state.logits(frozen, pixels, rows, aims, ball=BALL, shared=shared)
        delta = perturb(
            frozen,
            pixels,
            aims,
            ball=BALL,
            steps=visit + (3 if shared else 1),
            step_size=0.02,
            targeted=targeted,
            universal=shared,
            rule="gradient",
        )
        assert_close(logits.detach(), frozen(clip(pixels + delta)))


def test_images_keep_their_perturbations_wherever_they_stand_in_a_batch(frozen: nn.Module) -> None:
    clean = tiny_images(12)
    pixels, aims = to_pixels(clean.images), (clean.labels + 1) % 4
    together, apart = carried(clean.images), carried(clean.images)
    everything = torch.arange(12)
    for seed in range(2):
        together.logits(frozen, pixels, everything, aims, ball=BALL, shared=False)
        for rows in torch.randperm(12, generator=stream(seed, "order")).split(5):
            apart.logits(frozen, pixels[rows], rows, aims[rows], ball=BALL, shared=False)
    assert_close(apart.own, together.own)
    assert bool((together.own.flatten(1).norm(dim=1) > 0.05).all())


def test_the_layer_learns_from_the_pass_that_moves_the_perturbation(frozen: nn.Module) -> None:
    passes: list[int] = []

    def predict(pixels: Tensor) -> Tensor:
        passes.append(len(pixels))
        return frozen(pixels)

    clean = tiny_images(12)
    pixels, rows = to_pixels(clean.images), torch.arange(12)
    state = carried(clean.images)
    for _ in range(4):
        state.logits(predict, pixels, rows, clean.labels, ball=BALL, shared=True)
    assert passes == [12] * (3 + 4)


@pytest.mark.parametrize("name", FAST)
def test_a_fast_run_is_repeatable_and_differs_from_the_exact_one(name: str) -> None:
    settings, clean = FAST[name], tiny_images(24)
    first, second, exact = (
        polarizer_of(repaired(tiny_model(), clean, each)).state_dict()
        for each in (settings, settings, replace(settings, speed="exact"))
    )
    assert_same(first, second)
    assert not torch.equal(first["mix.weight"], exact["mix.weight"])


@pytest.mark.parametrize(("asked", "exact", "fast"), [(None, 50, 25), (3, 3, 3)])
def test_the_fast_mode_takes_half_as_many_epochs_unless_told(asked: int | None, exact: int, fast: int) -> None:
    settings = replace(SMALL, epochs=asked, lr=1e-3)
    for each, expected in ((settings, exact), (replace(settings, speed="fast"), fast)):
        assert len(repaired(tiny_model(), tiny_images(24), each).history) == expected


def test_batch_statistics_and_the_fast_mode_do_not_go_together() -> None:
    with pytest.raises(BadInputError, match="fast mode needs bn_outer"):
        replace(SMALL, speed="fast", bn_outer="train_clean_stats")


class Rows(nn.Module):
    """Class k of 16 sees how bright row k is; one class sees it more strongly."""

    def __init__(self, chosen: int) -> None:
        super().__init__()
        self.gain = torch.ones(16)
        self.gain[chosen] = 4.0

    def forward(self, pixels: Tensor) -> Tensor:
        return self.gain * pixels.mean(dim=(1, 3))


@pytest.mark.parametrize("chosen", [0, 7, 15])
def test_the_quick_search_tries_the_best_classes_in_full(chosen: int) -> None:
    clean = tiny_images(64, num_classes=16, size=16)
    passes: list[int] = []

    def predict(pixels: Tensor) -> Tensor:
        passes.append(len(pixels))
        return Rows(chosen)(pixels)

    quick = quick_reachability(predict, clean.images, clean.labels, 16, generator=stream(0, "quick"))
    work = sum(passes)
    full = reachability(predict, clean.images, clean.labels, 16, generator=stream(0, "full"))
    assert int(quick[:-1].argmax()) == int(full[:-1].argmax()) == chosen
    assert_close(quick[chosen], full[chosen], rtol=0.1, atol=0.0)
    assert work < 0.7 * (sum(passes) - work)
