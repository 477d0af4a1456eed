"""FTrojan and CTRL: the pattern against cosine transforms written out."""

from typing import Any

import numpy as np
import pytest
import torch
from quick_attacks import TRAIN

from neural_polarizer.attacks import CTRL, FTrojan
from neural_polarizer.attacks.frequency import waves
from neural_polarizer.errors import BadInputError


def cosines(n: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix: row k, place x."""
    k, x = np.arange(n)[:, None], np.arange(n)
    scales = np.full((n, 1), np.sqrt(2 / n))
    scales[0] = np.sqrt(1 / n)
    found: np.ndarray = scales * np.cos(np.pi * k * (2 * x + 1) / (2 * n))
    return found


def test_the_waves_are_two_coefficients_of_one() -> None:
    transform = cosines(32)
    found = transform @ waves((32, 32), 32).numpy() @ transform.T
    expected = np.zeros((32, 32))
    expected[15, 15] = expected[31, 31] = 1
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_blocks_repeat_and_small_images_have_a_small_window() -> None:
    tiled = waves((64, 48), 32)
    assert tiled.shape == (64, 48)
    assert torch.equal(tiled[:32, :32], waves((32, 32), 32))
    assert torch.equal(tiled[32:, 32:], waves((32, 32), 32)[:, :16])
    transform = cosines(8)
    small = transform @ waves((8, 8), 32).numpy() @ transform.T
    assert np.argwhere(np.abs(small) > 1e-9).tolist() == [[3, 3], [7, 7]]


def test_the_image_gains_thirty_in_cr_and_cb_and_nothing_in_y() -> None:
    images = torch.full((1, 3, 32, 32), 120, dtype=torch.uint8)
    gain = FTrojan().stamp(images)[0].double().numpy() - 120
    red, green, blue = gain
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    transform = cosines(32)
    for channel in (0.713 * (red - luma), 0.564 * (blue - luma)):  # Cr, Cb
        coefficients = transform @ channel @ transform.T
        assert abs(coefficients[15, 15] - 30) < 3  # rounding to 8 bits
        assert abs(coefficients[31, 31] - 30) < 3
    assert abs(luma).max() < 1
    assert abs(gain).max() <= 7


def test_ctrl_is_stronger_at_test_and_leaves_labels_true() -> None:
    attack = CTRL(target=1, poison_rate=0.125)
    images = TRAIN.images.clamp(60, 190)
    trained = attack.stamp_in_training(images, {}, torch.Generator())
    assert torch.equal(trained, FTrojan(magnitude=50.0).stamp(images))
    assert torch.equal(attack.stamp(images), FTrojan(magnitude=100.0).stamp(images))
    poisoned, chosen, _ = attack.poisoned(TRAIN, seed=0)
    assert torch.equal(poisoned.labels, TRAIN.labels)
    assert torch.equal(poisoned.images[chosen], attack.stamp_in_training(TRAIN.images[chosen], {}, torch.Generator()))


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (FTrojan, {"magnitude": 0.0}, "FTrojan needs a positive magnitude"),
        (FTrojan, {"window": 1}, "window of at least 2"),
        (CTRL, {"test_magnitude": 0.0}, "CTRL needs a positive magnitude at test"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        kind(**settings)
