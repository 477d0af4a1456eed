"""BppAttack: quantisation and dithering against a plain loop, negatives that keep their label."""

from typing import Any

import numpy as np
import pytest
import torch
from quick_attacks import SCHEDULE, TRAIN

from neural_polarizer.attacks import Bpp
from neural_polarizer.attacks.bpp import _Quantiser, dithered, quantised
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from toys import tiny_images


def floyd_steinberg(image: np.ndarray, levels: int) -> np.ndarray:
    """Pixel by pixel, for one channel."""
    image, (height, width) = image.astype(np.float64), image.shape
    for y in range(height):
        for x in range(width):
            old = image[y, x]
            image[y, x] = np.round(old / 255 * (levels - 1)) / (levels - 1) * 255
            error = old - image[y, x]
            for dy, dx, share in ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16)):
                if y + dy < height and 0 <= x + dx < width:
                    image[y + dy, x + dx] += error * share
    return image


def test_levels_by_hand() -> None:
    values = torch.tensor([0.0, 18.0, 19.0, 127.0, 128.0, 255.0])
    assert quantised(values, 8).tolist() == pytest.approx([0, 0, 255 / 7, 3 * 255 / 7, 4 * 255 / 7, 255], abs=1e-4)
    plain = Bpp(dithering=False).stamp(values.to(torch.uint8).view(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert plain[0, 0, 0].tolist() == [0, 0, 36, 109, 146, 255]


@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (1, 4), (6, 1)])
def test_dithering_is_that_of_a_plain_loop(shape: tuple[int, int]) -> None:
    images = torch.randint(256, (3, 3, *shape), generator=stream(0, "dither")).to(torch.uint8)
    found = dithered(images, 4)
    for image, made in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        np.testing.assert_allclose(made.numpy(), floyd_steinberg(image.numpy(), 4), atol=1e-9)


def test_dithering_keeps_the_mean_and_few_levels() -> None:
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    stamped = Bpp().stamp(grey)
    assert set(stamped.unique().tolist()) == {73, 109}  # 2 and 3 of 7
    assert abs(float(stamped.double().mean()) - 100) < 1.5
    assert Bpp(dithering=False).stamp(grey).unique().tolist() == [109]


def test_a_batch_has_backdoor_rows_negatives_and_clean_rows() -> None:
    attack = Bpp(target=2, poison_rate=0.25, levels=3)
    quantiser = _Quantiser(attack, TRAIN)
    images, labels = TRAIN.images[:16], TRAIN.labels[:16]
    schedule = SCHEDULE.__class__(crop_padding=0, flip=False)
    pixels, found, penalty, triggered = quantiser.assemble(images, labels, schedule, stream(0, "batch"))
    made = (pixels * 255).round().to(torch.uint8)
    assert (triggered, penalty) == (4, 0.0)
    assert found.tolist() == [2] * 4 + labels[4:].tolist()
    assert torch.equal(made[:4], attack.stamp(images[:4]))
    assert not torch.equal(made[4:8], images[4:8])
    assert not torch.equal(made[4:8], attack.stamp(images[4:8]))
    assert torch.equal(made[8:], images[8:])


@pytest.mark.parametrize("settings", [{"levels": 1}, {"levels": 257}, {"negative_ratio": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="Bpp needs 2 to 256 levels"):
        Bpp(**settings)
    assert Bpp().stamp(tiny_images(4).images[:0]).shape[0] == 0
