import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neural_polarizer.data.augment import random_crop, random_flip

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(1, 256, shape, generator=generator(1), dtype=torch.uint8)  # 0 is for padding only


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The slow, obvious reference: pixel (y, x) comes from (y + down, x + right), black from outside."""
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                out[:, y, x] = image[:, y + down, x + right]
    return out


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, padding=st.integers(0, 4), seed=st.integers(0, 2**16))
def test_a_crop_equals_the_obvious_reference(shape: tuple[int, ...], padding: int, seed: int) -> None:
    images = random_images(shape)
    before = images.clone()
    got = random_crop(images, padding, generator(seed))
    down, right = torch.randint(2 * padding + 1, (2, shape[0], 1), generator=generator(seed)).squeeze(2) - padding
    for image, crop, dy, dx in zip(images, got, down.tolist(), right.tolist(), strict=True):
        assert torch.equal(crop, shifted(image, dy, dx))
    assert got.shape == images.shape
    assert torch.equal(images, before)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**16))
def test_a_flip_is_per_image_and_undone_by_the_same_flip(shape: tuple[int, ...], seed: int) -> None:
    images = random_images(shape)
    once = random_flip(images, generator(seed))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(once, images, strict=True))
    assert torch.equal(random_flip(once, generator(seed)), images)


def test_about_half_of_the_images_are_flipped_and_all_shifts_occur() -> None:
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(1000, 1, 3, 3)
    flipped = (random_flip(images, generator(0)) != images).flatten(1).any(1).float().mean()
    assert 0.45 < float(flipped) < 0.55
    assert len({crop.numpy().tobytes() for crop in random_crop(images, 1, generator(0))}) == 9


def test_no_padding_changes_nothing() -> None:
    images = random_images((4, 3, 5, 5))
    assert torch.equal(random_crop(images, 0, generator(0)), images)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding must be 0 or more pixels, got -1"):
        random_crop(random_images((1, 3, 4, 4)), -1, generator(0))
