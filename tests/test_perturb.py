"""The inner problem: projections and steps that can be checked on paper, and what must hold for all of them."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, tensor
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.perturb import Ball, StepRule, clip, perturb
from toys import TwoPixels, made, quick, tiny_images, tiny_model

Norm = Literal["l2", "linf"]
NORMS = st.sampled_from(["l2", "linf"])
GREY = tensor([[[[0.5, 0.5]]]])


def _lengths(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).norm(dim=1) if norm == "l2" else delta.flatten(1).abs().amax(dim=1)


def _noise(seed: int, n: int = 4, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_projections_by_hand() -> None:
    delta = tensor([[[[3.0, 4.0]]], [[[0.3, -0.4]]], [[[0.0, 0.0]]]])
    assert_close(Ball("l2", 1.0).project(delta), tensor([[[[0.6, 0.8]]], [[[0.3, -0.4]]], [[[0.0, 0.0]]]]))
    assert_close(Ball("linf", 0.35).project(delta), tensor([[[[0.35, 0.35]]], [[[0.3, -0.35]]], [[[0.0, 0.0]]]]))


def test_each_sample_may_have_a_radius_of_its_own() -> None:
    delta = tensor([[[[3.0, 4.0]]], [[[3.0, 4.0]]], [[[3.0, 4.0]]]])
    radii = tensor([1.0, 2.0, 100.0])
    assert_close(_lengths(Ball("l2", radii).project(delta), "l2"), tensor([1.0, 2.0, 5.0]))
    assert_close(_lengths(Ball("linf", radii).project(delta), "linf"), tensor([1.0, 2.0, 4.0]))


@quick
@given(
    norm=NORMS,
    radius=st.just(0.0) | st.floats(1e-6, 8.0),
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([1e-8, 0.01, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_projection_lands_inside_twice_is_once_and_inner_points_stay(
    norm: Norm, radius: float, seed: int, spread: float, dtype: torch.dtype
) -> None:
    ball, delta = Ball(norm, radius), _noise(seed, spread=spread).to(dtype)
    once = ball.project(delta)
    assert once.dtype == dtype
    assert bool((_lengths(once, norm) <= radius * (1 + 1e-5) + 1e-30).all())
    assert_close(ball.project(once), once, rtol=1e-6, atol=0.0)
    inside = _lengths(delta, norm) <= radius
    assert_close(once[inside], delta[inside], rtol=0.0, atol=0.0)


@quick
@given(norm=NORMS, radius=st.floats(0.01, 3.0), seed=st.integers(0, 2**16))
def test_no_point_of_the_ball_is_nearer_than_the_projection(norm: Norm, radius: float, seed: int) -> None:
    ball, delta = Ball(norm, radius), _noise(seed)
    distance = (ball.project(delta) - delta).flatten(1).norm(dim=1)
    others = ball.project(_noise(seed + 1))
    assert bool(((others - delta).flatten(1).norm(dim=1) >= distance - 1e-5).all())


@pytest.mark.parametrize(
    ("norm", "radius", "match"),
    [("l1", 1.0, "the norm must be l2 or linf, got 'l1'"), ("l2", -0.1, "-0.1"), ("linf", math.nan, "not be negative")],
)
def test_impossible_balls_are_refused(norm: Any, radius: float, match: str, unchecked: None) -> None:
    with pytest.raises(BadInputError, match=match):
        Ball(norm, radius)


@pytest.mark.parametrize(
    ("label", "targeted", "expected"),
    [(1, True, [0.1, -0.1]), (0, True, [-0.1, 0.1]), (1, False, [-0.1, 0.1]), (0, False, [0.1, -0.1])],
)
def test_one_linf_step_is_known_by_hand(label: int, targeted: bool, expected: list[float]) -> None:
    found = perturb(
        TwoPixels(), GREY, tensor([label]), ball=Ball("linf", 0.3), steps=1, step_size=0.1, targeted=targeted
    )
    assert_close(found, tensor([[[expected]]]))


def test_l2_steps_end_on_the_sphere_as_on_paper() -> None:
    found = perturb(TwoPixels(), GREY, tensor([1]), ball=Ball("l2", 0.2), steps=3, step_size=0.1)
    assert_close(found, tensor([[[[0.2 / 2**0.5, -0.2 / 2**0.5]]]]))


def test_the_gradient_rule_steps_as_far_as_the_sign_rule() -> None:
    pixels, labels = to_pixels(tiny_images(6).images), tensor([1, 2, 3, 0, 1, 2])
    ball = Ball("l2", 1e3)
    step = {
        rule: perturb(tiny_model(), pixels, labels, ball=ball, steps=1, step_size=0.05, rule=rule)
        for rule in ("sign", "gradient")
    }
    wanted = torch.full((6,), 0.05 * pixels[0].numel() ** 0.5)
    assert_close(_lengths(step["gradient"], "l2"), wanted)
    assert_close(_lengths(step["sign"], "l2"), wanted)
    point = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(tiny_model()(point), labels, reduction="sum"), point)
    direction = F.normalize(gradient.flatten(1))
    assert_close(F.normalize(step["gradient"].flatten(1)), -direction, rtol=1e-3, atol=1e-5)
    assert_close(step["sign"], -0.05 * gradient.sign())


def test_zero_steps_give_zero() -> None:
    found = perturb(TwoPixels(), GREY, tensor([1]), ball=Ball("l2", 1.0), steps=0, step_size=0.1)
    assert torch.equal(found, torch.zeros_like(GREY))


def test_steps_begin_at_the_projected_start_and_leave_it_as_it_was() -> None:
    """From (3, 4) the unit sphere is met at (.6, .8); a step of (.1, -.1) from there stays inside."""
    start = tensor([[[[3.0, 4.0]]]])
    for steps, expected in ((0, tensor([0.6, 0.8])), (1, tensor([0.7, 0.7]))):
        found = perturb(
            TwoPixels(), GREY - 0.5, tensor([1]), ball=Ball("l2", 1.0), steps=steps, step_size=0.1, start=start
        )
        assert_close(found[0, 0, 0], expected)
    assert torch.equal(start, tensor([[[[3.0, 4.0]]]]))
    assert not start.requires_grad


def test_the_network_sees_only_valid_pixels() -> None:
    """At a = 1 the clip cuts the gradient of the pixel that would have to grow, once it has grown."""
    seen: list[Tensor] = []

    def predict(pixels: Tensor) -> Tensor:
        seen.append(pixels.detach())
        return TwoPixels()(pixels)

    pixels = tensor([[[[0.95, 0.05]]]])
    found = perturb(predict, pixels, tensor([1]), ball=Ball("linf", 0.5), steps=3, step_size=0.1)
    assert_close(found, tensor([[[[0.1, -0.1]]]]))
    assert_close(seen[1], tensor([[[[1.0, 0.0]]]]), rtol=0.0, atol=0.0)
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in seen)


@quick
@given(
    norm=NORMS,
    radius=st.floats(0.0, 4.0),
    steps=st.integers(0, 3),
    seed=st.integers(0, 2**16),
    targeted=st.booleans(),
    universal=st.booleans(),
    rule=st.sampled_from(["sign", "gradient"]),
)
def test_every_perturbation_is_in_the_ball(
    norm: Norm, radius: float, steps: int, seed: int, targeted: bool, universal: bool, rule: StepRule
) -> None:
    model, images = tiny_model(), tiny_images(5, seed=seed)
    pixels = to_pixels(images.images)
    found = perturb(
        model,
        pixels,
        (images.labels + 1) % 4,
        ball=Ball(norm, radius),
        steps=steps,
        step_size=0.1,
        targeted=targeted,
        universal=universal,
        rule=rule,
    )
    assert found.shape == ((1, *pixels.shape[1:]) if universal else pixels.shape)
    assert not found.requires_grad
    assert bool((_lengths(found, norm) <= radius * (1 + 1e-5)).all())


def test_a_universal_step_follows_the_summed_gradient_and_has_one_row() -> None:
    """Two samples pull pixel a up; one pulls it down, but harder: the sum decides, not the vote."""

    class Weighted(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            strength = tensor([1.0, 1.0, -9.0]) * pixels[:, 0, 0, 0]
            return torch.stack([torch.zeros_like(strength), strength], dim=1)

    pixels = tensor([[[[0.1]]], [[[0.1]]], [[[0.1]]]])
    found = perturb(
        Weighted(), pixels, tensor([1, 1, 1]), ball=Ball("linf", 1.0), steps=1, step_size=0.2, universal=True
    )
    assert_close(found, tensor([[[[-0.2]]]]))


def test_targeted_steps_lower_the_targets_loss_and_untargeted_ones_raise_the_labels() -> None:
    model, images = tiny_model(), tiny_images(40)
    pixels, labels = to_pixels(images.images), images.labels
    for targeted, wanted in ((True, (labels + 1) % 4), (False, labels)):
        delta = perturb(model, pixels, wanted, ball=Ball("l2", 1.0), steps=2, step_size=0.1, targeted=targeted)
        before = F.cross_entropy(model(pixels), wanted, reduction="none")
        after = F.cross_entropy(model((pixels + delta).clamp(0, 1)), wanted, reduction="none")
        better = (after < before) if targeted else (after > before)
        assert float(better.float().mean()) > 0.9


def test_samples_do_not_influence_one_another() -> None:
    model, images = tiny_model(), tiny_images(6)
    pixels, labels = to_pixels(images.images), (images.labels + 1) % 4
    ball = Ball("l2", 1.0)
    together = perturb(model, pixels, labels, ball=ball, steps=3, step_size=0.1)
    alone = [perturb(model, pixels[i : i + 1], labels[i : i + 1], ball=ball, steps=3, step_size=0.1) for i in range(6)]
    assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-6)


def test_no_parameter_gets_a_gradient_and_the_pixels_stay() -> None:
    model, pixels = tiny_model(), to_pixels(tiny_images(4).images)
    before = pixels.clone()
    perturb(model, pixels, tensor([1, 2, 3, 0]), ball=Ball("l2", 1.0), steps=2, step_size=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(pixels, before)


def test_float64_pixels_give_float64_perturbations() -> None:
    pixels = to_pixels(tiny_images(4).images).double()
    model = made(tiny_model().double())
    labels = tensor([1, 2, 3, 0])
    found = perturb(model, pixels, labels, ball=Ball("l2", 0.7), steps=2, step_size=0.1)
    single = perturb(tiny_model(), pixels.float(), labels, ball=Ball("l2", 0.7), steps=2, step_size=0.1)
    assert found.dtype == torch.float64
    assert_close(found.float(), single, rtol=1e-3, atol=1e-4)


def _reference_early_stop(
    model: nn.Module, pixels: Tensor, labels: Tensor, ball: Ball, steps: int, share: float
) -> Tensor:
    """As in the authors' code: an extra forward pass after every step decides whether to go on."""
    delta = torch.zeros_like(pixels)
    for _ in range(steps):
        point = delta.clone().requires_grad_()
        loss = F.cross_entropy(model((pixels + point).clamp(0, 1)), labels)
        delta = ball.project(delta - 0.02 * torch.autograd.grad(loss, point)[0].sign())
        reached = model((pixels + delta).clamp(0, 1)).argmax(dim=1) == labels
        if reached.float().mean() > share:
            break
    return delta


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_early_stop_takes_the_decisions_of_the_plain_form(seed: int, share: float) -> None:
    model, images = tiny_model(seed), tiny_images(10, seed=seed)
    pixels, labels = to_pixels(images.images), (images.labels + 1) % 4
    ball = Ball("l2", 2.0)
    found = perturb(model, pixels, labels, ball=ball, steps=6, step_size=0.02, stop_above=share)
    expected = _reference_early_stop(model, pixels, labels, ball, 6, share)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_early_stop_does_stop_and_never_before_the_first_step() -> None:
    """Class 1 is reached after one step already, and from the outset in the second case."""
    for pixels in (tensor([[[[0.48, 0.52]]]]), tensor([[[[0.9, 0.1]]]])):
        found = perturb(
            TwoPixels(), pixels, tensor([1]), ball=Ball("linf", 1.0), steps=3, step_size=0.05, stop_above=0.6
        )
        assert_close(found, tensor([[[[0.05, -0.05]]]]))


@pytest.mark.parametrize("rule", ["sign", "gradient"])
def test_no_images_give_no_perturbations(rule: StepRule) -> None:
    """A batch may hold nothing but images of the attacker's class, which are left out."""
    found = perturb(
        tiny_model(),
        torch.empty(0, 3, 8, 8),
        torch.empty(0, dtype=torch.int64),
        ball=Ball("l2", 1.0),
        steps=2,
        step_size=0.1,
        rule=rule,
    )
    assert found.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("rule", ["sign", "gradient"])
def test_black_and_white_pixels_can_begin_to_change(rule: StepRule) -> None:
    """A black and a white pixel of the right side are pushed inwards; of the wrong side they cannot leave the range."""
    picture = tensor([[[[0.0, 1.0]]]])
    delta = perturb(TwoPixels(), picture, tensor([1]), ball=Ball("l2", 1.0), steps=1, step_size=0.1, rule=rule)
    assert_close(delta, tensor([[[[0.1, -0.1]]]]))


def test_clip_is_a_clamp_whose_borders_have_a_gradient() -> None:
    values = tensor([-0.5, 0.0, 0.5, 1.0, 1.5]).view(1, 1, 1, 5).requires_grad_()
    clipped = clip(values)
    assert_close(clipped.detach().flatten(), tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    clipped.sum().backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
