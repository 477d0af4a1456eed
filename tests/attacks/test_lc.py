"""LC: the corners by hand, and adversarial images in training only."""

from typing import Any

import pytest
import torch
from quick_attacks import TRAIN, learned, quick_attack, workshop

from neural_polarizer.attacks import LC
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from toys import tiny_images


def test_the_patch_in_all_corners_is_mirrored() -> None:
    stamped = LC().stamp(torch.full((1, 3, 8, 8), 100, dtype=torch.uint8))
    by_hand = [
        [255, 0, 255, 100, 100, 255, 0, 255],
        [0, 255, 0, 100, 100, 0, 255, 0],
        [255, 0, 0, 100, 100, 0, 0, 255],
        [100] * 8,
        [100] * 8,
        [255, 0, 0, 100, 100, 0, 0, 255],
        [0, 255, 0, 100, 100, 0, 255, 0],
        [255, 0, 255, 100, 100, 255, 0, 255],
    ]
    for channel in stamped[0]:
        assert channel.tolist() == by_hand


def test_training_images_are_adversarial_within_the_radius_and_labels_true() -> None:
    attack = quick_attack("lc", target=1, poison_rate=0.2, eps=8.0, steps=5)
    assert isinstance(attack, LC)
    state = learned(attack)
    poisoned, chosen, _ = attack.poisoned(TRAIN, state, seed=0)
    assert len(chosen) == 10
    assert torch.equal(poisoned.labels, TRAIN.labels)
    inside = poisoned.images[chosen][:, :, 3:-3, 3:-3].int() - TRAIN.images[chosen][:, :, 3:-3, 3:-3].int()
    assert 0 < int(inside.abs().max()) <= 8
    assert torch.equal(poisoned.images[chosen], attack.stamp(state["hard"]))
    # images that nothing was learned of get the patch only
    others = tiny_images(3, size=32, seed=9).images
    assert torch.equal(attack.stamp_in_training(others, state, torch.Generator()), attack.stamp(others))


def test_a_clean_classifier_finds_the_adversarial_images_harder() -> None:
    attack = LC(target=1, poison_rate=0.2, eps=32.0, steps=10)
    shop = workshop()
    state = attack.learn(TRAIN, shop)
    _, chosen, _ = attack.poisoned(TRAIN, state, seed=0)
    model = shop.clean_model()
    with torch.no_grad():
        clean, hard = (
            model(to_pixels(images)).softmax(1)[:, 1].mean() for images in (TRAIN.images[chosen], state["hard"])
        )
    assert float(hard) < float(clean) - 0.02


def test_nothing_to_poison_is_no_fault() -> None:
    attack = LC(poison_rate=0.0)
    state = attack.learn(TRAIN, workshop())
    assert attack.poisoned(TRAIN, state, seed=0).chosen.tolist() == []
    assert attack.stamp_in_training(TRAIN.images[:0], state, torch.Generator()).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"steps": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="LC needs an eps"):
        LC(**settings)
    with pytest.raises(BadInputError, match="LC needs images of at least 6 pixels"):
        LC().check(tiny_images(8, size=4))
