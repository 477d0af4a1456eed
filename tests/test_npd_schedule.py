"""How many epochs NPD takes, and how long its steps are."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from neural_polarizer.defenses import neural_polarizer as npd
from neural_polarizer.defenses import npd_schedule
from neural_polarizer.polarizer import Polarizer
from neural_polarizer.train import silent
from npd_cases import CASES, SMALL
from toys import tiny_images, tiny_model, with_features_scaled


def test_the_number_of_epochs_follows_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 10 steps, 2 epochs, at most 4: with 3, 1 and 24 steps an epoch that makes 4, 4 (not 10) and 2."""
    for name, value in (("MIN_STEPS", 10), ("MIN_EPOCHS", 2), ("MAX_EPOCHS", 4)):
        monkeypatch.setattr(npd_schedule, name, value)
    for batch_size, epochs in ((10, 4), (24, 4), (1, 2)):
        settings = replace(SMALL, epochs=None, batch_size=batch_size, lr=1e-3, lr_policy="cosine")
        told: list[tuple[str, int, int]] = []
        result = settings.repair(
            tiny_model(), tiny_images(24), seed=0, progress=lambda *step, told=told: told.append(step)
        )
        assert len(result.history) == epochs
        assert told[-1] == ("optimise", len(told), len(told))


def test_small_features_are_learned_as_their_enlargements_are() -> None:
    settings = replace(CASES["features"], site="before:features.3")

    def learned(factor: float, epochs: int = 2) -> Polarizer:
        model, clean = with_features_scaled(tiny_model(), factor), tiny_images()
        learner = npd._Learner(replace(settings, epochs=epochs), model, clean, torch.device("cpu"), 0)
        learner.polarizer.norm.eps = 0.0  # which knows no unit
        learner.calibrate()
        learner.optimise(0, silent)
        return learner.polarizer

    larger, smaller, start = learned(0.25), learned(0.05), learned(0.25, epochs=0)
    assert_close(smaller.mix.weight, larger.mix.weight, rtol=0.0, atol=1e-4)
    for ours, theirs in zip(smaller.in_feature_units, larger.in_feature_units, strict=True):
        assert_close(ours / 0.05, theirs / 0.25, rtol=0.0, atol=1e-3)
    assert float((larger.norm.bias - start.norm.bias).detach().abs().max()) / 0.25 > 0.1


def test_only_small_features_shorten_the_steps() -> None:
    assert npd_schedule.feature_units_rate(torch.tensor([0.0025, 0.0025])) == pytest.approx(0.25)
    assert npd_schedule.feature_units_rate(torch.tensor([0.0, 0.02])) == pytest.approx(1.0)
    assert npd_schedule.feature_units_rate(torch.tensor([4.0, 9.0])) == 1.0
    assert npd_schedule.feature_units_rate(torch.tensor([torch.nan, 1.0])) == 1.0
