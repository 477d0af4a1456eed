"""How many steps and epochs defenses with a layer take, and how long their steps are."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from neural_polarizer.defenses.descent import Descent
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.npd.algorithm import optimise
from neural_polarizer.defenses.schedule import batches, cosine, feature_units_rate, steps_an_epoch
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.progress import silent
from npd_cases import SMALL
from toys import assert_same, tiny_images, tiny_model, with_features_scaled


@pytest.mark.parametrize(("count", "size", "steps"), [(24, 10, 3), (20, 10, 2), (21, 10, 2), (1, 10, 1), (3, 1, 3)])
def test_a_last_image_by_itself_joins_the_batch_before(count: int, size: int, steps: int) -> None:
    found = batches(count, size, seed=0, phase="optimise", epoch=0)
    assert steps_an_epoch(count, size) == len(found) == steps
    assert torch.cat(found).sort().values.tolist() == list(range(count))


def test_a_long_gradient_is_shortened_and_a_short_one_is_not() -> None:
    """Both have parts of length 3 (the shift's, with a quarter of the rate) and 4: 4.27 in the step's own metric."""

    def moved(max_gradient: float | None) -> tuple[float, float]:
        layer = Polarizer(1).eval()
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        descent = Descent(layer, max_gradient=max_gradient, unit_rate=0.25)
        descent.step(4 * layer.mix.weight.sum() + 3 * layer.norm.bias.sum() + 0 * layer.norm.weight.sum(), 1.0)
        after = layer.state_dict()
        return float(before["mix.weight"] - after["mix.weight"]), float(before["norm.bias"] - after["norm.bias"])

    assert moved(None) == moved(5.0) == pytest.approx((4.0, 0.75))
    assert moved(2.0) == pytest.approx((8 / 18.25**0.5, 1.5 / 18.25**0.5))


def test_the_cosine_by_hand() -> None:
    assert [cosine(done, 4) for done in range(5)] == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0])


@pytest.mark.long
def test_the_number_of_epochs_follows_the_number_of_images() -> None:
    """At least 10 steps, 2 epochs, at most 4: with 3, 1 and 24 steps an epoch that makes 4, 4 (not 10) and 2."""
    for batch_size, epochs in ((10, 4), (24, 4), (1, 2)):
        settings = replace(SMALL, epochs=None, min_steps=10, min_epochs=2, max_epochs=4, batch_size=batch_size, lr=1e-3)
        told: list[tuple[str, int, int]] = []
        result = settings.repair(
            tiny_model(), tiny_images(24), seed=0, progress=lambda *step, told=told: told.append(step)
        )
        assert len(result.history) == epochs
        assert told[-1] == ("optimise", len(told), len(told))


def test_small_features_are_learned_as_their_enlargements_are() -> None:
    def learned(factor: float, epochs: int = 2) -> Polarizer:
        settings = replace(SMALL, site="before:features.3", lr=0.01, epochs=epochs)
        model, clean = with_features_scaled(tiny_model(), factor), tiny_images()
        net = Engine(model, clean, seed=0, site=settings.site, batch_size=settings.batch_size)
        net.polarizer.norm.eps = 0.0  # which knows no unit
        _, var = net.calibrate()
        rate = feature_units_rate(var, settings.small_features)
        optimise(settings, net, None, unit_rate=rate, seed=0, progress=silent)
        return net.polarizer

    larger, smaller, start = learned(0.25), learned(0.05), learned(0.25, epochs=0)
    assert_close(smaller.mix.weight, larger.mix.weight, rtol=0.0, atol=1e-4)
    for ours, theirs in zip(smaller.in_feature_units, larger.in_feature_units, strict=True):
        assert_close(ours / 0.05, theirs / 0.25, rtol=0.0, atol=1e-3)
    assert float((larger.norm.bias - start.norm.bias).detach().abs().max()) / 0.25 > 0.1


def test_only_small_features_shorten_the_steps() -> None:
    assert feature_units_rate(torch.tensor([0.0025, 0.0025]), 0.1) == pytest.approx(0.25)
    assert feature_units_rate(torch.tensor([0.0025, 0.0025]), 0.2) == pytest.approx(0.0625)
    assert feature_units_rate(torch.tensor([0.0, 0.02]), 0.1) == pytest.approx(1.0)
    assert feature_units_rate(torch.tensor([4.0, 9.0]), 0.1) == 1.0
    assert feature_units_rate(torch.tensor([torch.nan, 1.0]), 0.1) == 1.0


def test_a_descent_takes_shorter_steps_in_the_features_unit_and_knows_the_way_back() -> None:
    """Plain SGD by hand: each parameter moves against its gradient, which is 1."""
    layer = Polarizer(2).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    descent = Descent(layer, unit_rate=0.25)
    descent.step(sum((parameter.sum() for parameter in layer.parameters()), torch.tensor(0.0)), 0.1)
    assert_close(layer.mix.weight, before["mix.weight"] - 0.1)
    assert_close(layer.norm.bias, before["norm.bias"] - 0.025)
    assert descent.is_finite()
    layer.norm.bias.data.fill_(torch.nan)
    assert not descent.is_finite()
    descent.restore()
    assert_same(layer.state_dict(), before)
