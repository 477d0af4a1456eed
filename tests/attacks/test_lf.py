"""LF: DeepFool where the answer is known, and the pattern's bounds."""

import math

import pytest
import torch
from quick_attacks import TRAIN, learned, quick_attack, workshop
from torch import Tensor, nn
from torch.testing import assert_close

from neural_polarizer.attacks import LF
from neural_polarizer.attacks.lf import blurred, deepfool, fooled
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from toys import TwoPixels


def _linear(classes: int = 4) -> tuple[nn.Module, Tensor]:
    """Each class sees a pixel of its own."""
    weights = torch.eye(classes, 12)
    layer = nn.Linear(12, classes, bias=False)
    layer.weight.data.copy_(weights)
    return nn.Sequential(nn.Flatten(), layer).requires_grad_(False), weights


def test_deepfool_crosses_a_linear_border_by_the_shortest_way() -> None:
    """Two classes: r = |g| / |w|^2 w; by hand, with the overshoot of 2 %."""
    pixels = torch.tensor([[[[0.2, 0.6]]]])
    push = deepfool(TwoPixels(), pixels, 1, steps=5)
    assert push is not None
    assert_close(push, 1.02 * torch.tensor([[[[0.2, -0.2]]]]))


def test_deepfool_gives_up_where_logits_are_no_numbers() -> None:
    """A push can grow until the classifier overflows; the largest of its logits means nothing then."""
    assert (
        deepfool(lambda pixels: pixels.sum() * torch.tensor([[torch.nan, 1.0]]), torch.ones(1, 1, 1, 2), 0, steps=5)
        is None
    )


def test_deepfool_reaches_the_target_among_several_classes_or_says_so() -> None:
    model, _ = _linear()
    pixels = torch.randn(1, 3, 2, 2, generator=stream(1, "pixels"))
    for target in range(4):
        push = deepfool(model, pixels, target, steps=50)
        assert push is not None
        assert int(model(pixels + push).argmax()) == target
    start = int(model(pixels).argmax())
    already = deepfool(model, pixels, start, steps=50)
    assert already is not None
    assert not already.any()
    assert deepfool(model, pixels, (start + 1) % 4, steps=1) is None


def test_the_blur_keeps_the_sum_and_smooths() -> None:
    spot = torch.zeros(1, 3, 41, 41)
    spot[:, :, 20, 20] = 1
    smooth = blurred(spot, 2.0)
    assert_close(smooth.sum(dim=(2, 3)), torch.ones(1, 3))
    assert float(smooth[0, 0, 20, 20]) == pytest.approx(1 / (2 * math.pi * 4), rel=0.05)
    assert_close(smooth, smooth.transpose(2, 3))
    assert float(blurred(torch.ones(1, 3, 9, 9), 6.0).max()) < 1  # black beyond the border


def test_the_fooling_rate_by_hand() -> None:
    pixels = torch.tensor([[[[0.5, 0.4]]], [[[0.9, 0.1]]], [[[0.1, 0.9]]]])
    assert fooled(TwoPixels(), pixels, torch.tensor([[[[0.0, 0.3]]]])) == pytest.approx(1 / 3)


def test_the_pattern_reaches_51_and_is_smooth() -> None:
    state = learned(quick_attack("lf"))
    pattern = state["pattern"]
    assert (pattern.dtype, pattern.shape) == (torch.uint8, (3, 32, 32))
    assert int(pattern.max()) in (50, 51)
    assert int(pattern.min()) == 0
    steps = (pattern[:, 1:].int() - pattern[:, :-1].int()).abs()
    assert int(steps.max()) <= 12
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    attack = quick_attack("lf")
    assert torch.equal(attack.stamp(white, state), white)
    assert torch.equal(attack.stamp(white * 0, state)[0], pattern)


def test_a_target_that_is_never_reached_is_refused() -> None:
    with pytest.raises(BadInputError, match="DeepFool reached class 3 from none of 2 images"):
        LF(images=2, passes=1, deepfool_steps=1, target=3).learn(TRAIN, workshop())
