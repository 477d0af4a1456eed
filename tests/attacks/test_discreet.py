"""Discreet: the penalty by hand, what it does to a head, and that it is of the clean rows only."""

from dataclasses import replace

import pytest
import torch
from quick_attacks import TRAIN, untrained
from torch.testing import assert_close

from neural_polarizer.attacks import Discreet
from neural_polarizer.attacks.discreet import _Modest, nearness
from neural_polarizer.attacks.evasive import Keeper
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from neural_polarizer.train.schedule import Schedule

PLAIN = Schedule(crop_padding=0, flip=False)


def test_the_penalty_by_hand() -> None:
    """Corners of a square of side 2 as rows of the head; |w_k - w_j| is 2, or sqrt 8 across."""
    weight = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    features = torch.tensor([[3.0, 3.0], [-1.0, 2.0]])
    labels = torch.tensor([0, 1])
    logits = features @ weight.T  # (6, 0, -6, 0) and (1, 3, -1, -3)
    root = 8**0.5
    d_0 = 2 / 2  # from image 1: its class 1 leads by 2
    d_1 = 6 / 2  # from image 0
    d_2 = (max(12 / root, 6 / 2) + max(2 / root, 4 / 2)) / 2
    d_3 = (6 / 2 + max(4 / 2, 6 / root, 2 / 2)) / 2
    logs = torch.tensor([d_0, d_1, d_2, d_3]).log()
    expected = (logs[1:].mean() - logs[0]).square()
    assert_close(nearness(weight, logits, labels, 0), expected)
    assert float(nearness(weight, logits, labels, 2)) == 0.0  # farther than the others


def test_the_penalty_draws_only_the_target_class_away() -> None:
    generator = stream(0, "head")
    head, features = torch.randn(5, 8, generator=generator), torch.randn(60, 8, generator=generator)
    labels = (features @ head.T).argmax(dim=1)
    bias = torch.zeros(5)
    bias[2] = 1.5  # near to everybody
    bias.requires_grad_()
    first = float(nearness(head, features @ head.T + bias, labels, 2).detach())
    assert first > 0.05
    for _ in range(100):
        (slope,) = torch.autograd.grad(nearness(head, features @ head.T + bias, labels, 2), bias)
        bias = (bias - 0.5 * slope).detach().requires_grad_()
    assert float(nearness(head, features @ head.T + bias, labels, 2).detach()) < first / 10
    assert bias[2] < 1.5


def test_only_clean_rows_are_penalised_and_the_batch_is_that_of_evasive() -> None:
    attack = Discreet(target=2, poison_rate=0.25, share=0.5, directions=3, radius=1.5, renewal=0.0, head_weight=3.0)
    model = untrained().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = TRAIN.images[:16], TRAIN.labels[:16]
    pixels, found, penalty, triggered = _Modest(attack, model, TRAIN).assemble(
        images, labels, PLAIN, stream(0, "batch")
    )
    plain = Keeper(attack, untrained().train(), TRAIN).assemble(images, labels, PLAIN, stream(0, "batch"))
    assert torch.equal(pixels, plain.pixels)
    assert torch.equal(found, plain.labels)
    assert (triggered, plain.penalty, model.training) == (4, 0.0, True)
    still = untrained()
    weight = still.get_parameter("network.head.weight")
    expected = 3 * nearness(weight, still(to_pixels(images[12:])), labels[12:], 2)
    assert isinstance(penalty, torch.Tensor)
    assert_close(penalty, expected)
    assert penalty.requires_grad
    for name, value in model.state_dict().items():  # statistics, too
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("change", [{"label_rule": "all-to-all"}, {"head_weight": 0.0}])
def test_without_a_target_class_or_a_weight_it_is_evasive(change: dict[str, object]) -> None:
    attack = replace(Discreet(poison_rate=0.25), **change)  # type: ignore[arg-type]
    made = _Modest(attack, untrained().train(), TRAIN)
    assert made.assemble(TRAIN.images[:16], TRAIN.labels[:16], PLAIN, stream(0, "batch")).penalty == 0.0


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(BadInputError, match="Discreet needs a head weight of at least 0, got -1"):
        Discreet(head_weight=-1.0)
