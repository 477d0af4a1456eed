"""Grond: the universal perturbation, and channels that are evened out between epochs."""

from typing import Any

import pytest
import torch
from quick_attacks import SCHEDULE, TRAIN, learned, quick_attack, untrained, workshop
from torch import nn

from neural_polarizer.attacks import Grond
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError


def test_the_perturbation_leads_a_clean_classifier_to_the_target_within_its_radius() -> None:
    attack = Grond(target=1, eps=24.0, steps=20, batch=48)
    shop = workshop()
    state = attack.learn(TRAIN, shop)
    assert state["pattern"].dtype == torch.int16
    assert 0 < int(state["pattern"].abs().max()) <= 24
    others = TRAIN.images[TRAIN.labels != 1]
    model = shop.clean_model()
    with torch.no_grad():
        before, after = (model(to_pixels(x)).softmax(1)[:, 1].mean() for x in (others, attack.stamp(others, state)))
    assert float(after) > float(before) + 0.05


def test_stamping_adds_and_clips() -> None:
    pattern = torch.tensor([-8, 8], dtype=torch.int16).view(1, 1, 2).expand(3, 1, 2)
    images = torch.tensor([[3, 250], [100, 100]], dtype=torch.uint8).view(2, 1, 1, 2).expand(2, 3, 1, 2)
    assert Grond().stamp(images, {"pattern": pattern})[:, 0, 0].tolist() == [[0, 255], [92, 108]]


def test_half_of_the_target_class_at_most() -> None:
    attack = quick_attack("grond", target=1, poison_rate=0.5)
    assert len(attack.poisoned(TRAIN, learned(attack), seed=0).chosen) == 6  # of 12


def loud() -> tuple[nn.Module, nn.BatchNorm2d]:
    """16 channels with kernels alike, the batch norm of the last one 20 times as large."""
    convolution, norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
    with torch.no_grad():
        convolution.weight.fill_(0.1)
        norm.weight.fill_(1.0)
        norm.weight[15] = 20.0
        norm.bias.copy_(torch.arange(16.0))
    return nn.Sequential(convolution, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()).train(), norm


def test_a_channel_that_stands_out_gets_the_means_of_its_layer() -> None:
    network, norm = loud()
    Grond().between_epochs(network, torch.rand(1, 3, 8, 8))
    assert network.training
    assert norm.running_mean is not None
    assert norm.weight[:15].tolist() == [1.0] * 15
    assert float(norm.weight[15].detach()) == pytest.approx((15 + 20) / 16)
    assert norm.bias.tolist() == pytest.approx([*range(15), 7.5])
    assert norm.running_mean.tolist() == [0.0] * 16
    network, norm = loud()
    Grond(deviations=4.0).between_epochs(network, torch.rand(1, 3, 8, 8))  # one of 16 is at most 3.75 above the mean
    assert float(norm.weight[15].detach()) == 20.0


def test_planting_evens_out_between_epochs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    attack = quick_attack("grond", poison_rate=0.2)
    monkeypatch.setattr(Grond, "between_epochs", lambda self, model, pixels: calls.append(len(pixels)))
    attack.plant(untrained(), TRAIN, learned(attack), workshop())
    assert calls == [1] * (SCHEDULE.epochs - 1)


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"steps": 0}, {"batch": 0}, {"deviations": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="Grond needs an eps"):
        Grond(**settings)
