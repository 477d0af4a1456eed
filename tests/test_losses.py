"""The losses of eqs. 2, 3 and 6, by hand, against float64 and by finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from neural_polarizer.losses import asr_loss, boosted_cross_entropy, log_one_minus, runner_up
from toys import quick

Loss = Callable[[Tensor, Tensor], Tensor]


def _naive(logits: Tensor, index: Tensor) -> Tensor:
    return -torch.log1p(-logits.double().softmax(dim=1).gather(1, index[:, None])[:, 0])


def _logits(seed: int, n: int = 6, k: int = 5, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, k, generator=generator), torch.randint(k, (n,), generator=generator)


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ([3.0, 2.0, 1.0], 0, 1),
        ([3.0, 2.0, 1.0], 1, 0),
        ([-11.0, -30.0, -20.0], 0, 2),
        ([-1.0, -3.0, -2.0], 0, 2),
        ([-1e3, -1e4, -1e5], 0, 1),
        ([0.0, 0.0], 0, 1),
    ],
    ids=["label best", "label second", "all below -10", "all negative", "far below", "tie"],
)
def test_runner_up_by_hand(logits: list[float], label: int, expected: int) -> None:
    assert runner_up(tensor([logits]), tensor([label])).item() == expected


@quick
@given(
    seed=st.integers(0, 2**16),
    k=st.integers(2, 7),
    shift=st.sampled_from([0.0, -1.0, -50.0, -1e4, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_runner_up_is_the_best_class_other_than_the_label(seed: int, k: int, shift: float, dtype: torch.dtype) -> None:
    logits, labels = _logits(seed, k=k)
    logits = (logits + shift).to(dtype)
    found = runner_up(logits, labels)
    assert bool((found != labels).all())
    for row, label, other in zip(logits.float().tolist(), labels.tolist(), found.tolist(), strict=True):
        assert row[other] == max(value for k, value in enumerate(row) if k != label)


def test_runner_up_leaves_the_logits_alone() -> None:
    logits, labels = _logits(0)
    before = logits.clone()
    runner_up(logits, labels)
    assert torch.equal(logits, before)


def test_log_one_minus_by_hand() -> None:
    assert_close(log_one_minus(tensor([[0.0, 0.0]]), tensor([0])), tensor([math.log(2)]))
    assert_close(log_one_minus(tensor([[0.0, 0.0, 0.0]]), tensor([1])), tensor([math.log(1.5)]))
    assert_close(log_one_minus(tensor([[1e3, 0.0]]), tensor([0])), tensor([1e3]))
    assert_close(log_one_minus(tensor([[-1e3, 0.0]]), tensor([0])), tensor([0.0]))


@quick
@given(seed=st.integers(0, 2**16), k=st.integers(2, 6))
def test_stable_form_equals_the_naive_one_in_float64(seed: int, k: int) -> None:
    logits, index = _logits(seed, k=k)
    assert_close(log_one_minus(logits, index).double(), _naive(logits, index), rtol=1e-4, atol=1e-6)


def test_clamped_form_by_hand_and_close_to_the_stable_one_for_small_probabilities() -> None:
    even = log_one_minus(tensor([[0.0, 0.0]]), tensor([0]), "clamped")
    assert_close(even, tensor([-math.log(0.5001)]))
    certain = log_one_minus(tensor([[1e3, 0.0]]), tensor([0]), "clamped")
    assert_close(certain, tensor([-math.log(1e-4)]), rtol=1e-2, atol=0.0)  # 1.0001 - 1 has three digits in float32
    logits, index = _logits(1, n=200)
    small = logits.softmax(dim=1).gather(1, index[:, None])[:, 0] < 0.9
    gap = log_one_minus(logits, index, "clamped") - log_one_minus(logits, index)
    assert float(gap[small].abs().max()) < 1.1e-3
    assert int(small.sum()) > 100


def test_gradient_of_log_one_minus_is_p_j_and_what_follows_from_it() -> None:
    logits, index = _logits(3)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(log_one_minus(logits, index).sum(), logits)
    p = logits.detach().softmax(dim=1)
    chosen = p.gather(1, index[:, None])
    expected = (-chosen * p / (1 - chosen)).scatter(1, index[:, None], chosen)
    assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["stable", "clamped"])
def test_losses_and_gradients_are_finite_at_extreme_logits(dtype: torch.dtype, form: str) -> None:
    corners = [[a, b, c] for a in (-1e3, 0.0, 1e3) for b in (-1e3, 0.0, 1e3) for c in (-1e3, 0.0, 1e3)]
    for index in range(3):
        logits = tensor(corners, dtype=dtype).requires_grad_()
        labels = torch.full((len(corners),), index)
        for loss in (asr_loss(logits, labels, form), boosted_cross_entropy(logits, labels, form)):  # type: ignore[arg-type]
            (gradient,) = torch.autograd.grad(loss, logits)
            assert bool(loss.isfinite())
            assert bool(gradient.isfinite().all())
            assert gradient.dtype == dtype
            assert float(gradient.abs().max()) <= 2.0


def test_stable_gradient_lives_where_the_clamped_one_has_died() -> None:
    logits = tensor([[20.0, 0.0, 0.0]], requires_grad=True)
    slope = {
        form: float(torch.autograd.grad(asr_loss(logits, tensor([0]), form), logits)[0][0, 0])
        for form in ("stable", "clamped")
    }
    assert slope["stable"] == pytest.approx(1.0, abs=1e-4)
    assert abs(slope["clamped"]) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, index = _logits(5)
    rounded = logits.to(dtype)
    found = log_one_minus(rounded, index)
    assert found.dtype == torch.float32
    assert_close(found.double(), _naive(rounded, index), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda z, y: log_one_minus(z, y), id="stable"),
        pytest.param(lambda z, y: log_one_minus(z, y, "clamped"), id="clamped"),
        pytest.param(asr_loss, id="asr"),
        pytest.param(boosted_cross_entropy, id="bce"),
        pytest.param(lambda z, y: boosted_cross_entropy(z, y, "clamped", (y + 1) % 5), id="bce, other positive"),
    ],
)
def test_gradients_agree_with_finite_differences(loss: Loss) -> None:
    logits, labels = _logits(7, n=3, spread=1.0)
    # The losses compute in float32, so the differences must be coarse to stand out of its rounding.
    assert gradcheck(lambda z: loss(z, labels), (logits.double().requires_grad_(),), eps=1e-2, atol=2e-3, rtol=1e-2)


def test_asr_loss_is_the_mean_of_log_one_minus() -> None:
    logits, targets = _logits(9)
    assert_close(asr_loss(logits, targets), log_one_minus(logits, targets).mean())
    assert_close(asr_loss(logits, targets, "clamped"), log_one_minus(logits, targets, "clamped").mean())


def test_boosted_cross_entropy_by_hand() -> None:
    logits = tensor([[math.log(6.0), math.log(3.0), 0.0]])  # p = (.6, .3, .1)
    true, second = tensor([0]), tensor([1])
    assert_close(boosted_cross_entropy(logits, true).item(), -math.log(0.6) - math.log(0.7))
    assert_close(boosted_cross_entropy(logits, second).item(), -math.log(0.3) - math.log(0.4))
    assert_close(boosted_cross_entropy(logits, true, positive_labels=second).item(), -math.log(0.3) - math.log(0.7))


def test_the_terms_of_boosted_cross_entropy_by_hand() -> None:
    logits = tensor([[math.log(6.0), math.log(3.0), 0.0], [0.0, math.log(7.0), math.log(2.0)]])  # .6 .3 .1; .1 .7 .2
    labels, other = tensor([0, 2]), tensor([1, 1])
    true_class = boosted_cross_entropy(logits, labels, positive_labels=other, terms="true-class")
    assert_close(true_class.item(), -(math.log(0.3) + math.log(0.7)) / 2)
    runner = boosted_cross_entropy(logits, labels, positive_labels=other, terms="runner-up")
    assert_close(runner.item(), -(math.log(0.7) + math.log(0.3)) / 2)
    clamped = boosted_cross_entropy(logits, labels, "clamped", terms="runner-up")
    assert_close(clamped.item(), -(math.log(0.7001) + math.log(0.3001)) / 2)


def test_the_choice_of_the_best_wrong_class_carries_no_gradient() -> None:
    logits, labels = _logits(11)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(boosted_cross_entropy(logits, labels), logits)
    fixed = runner_up(logits.detach(), labels)
    written_out = torch.nn.functional.cross_entropy(logits, labels) + log_one_minus(logits, fixed).mean()
    (expected,) = torch.autograd.grad(written_out, logits)
    assert_close(found, expected)
