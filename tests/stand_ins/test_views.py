"""Harder copies: of the same size and range, other than the originals, and drawn by the seed only."""

import torch

from neural_polarizer.defenses.stand_ins.views import harder


def test_copies_are_other_images_of_the_same_kind() -> None:
    pixels = torch.rand(6, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    first, again, other = (harder(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == pixels.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_about_a_seventh_of_each_is_covered_by_one_colour() -> None:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for view in harder(pixels, torch.Generator().manual_seed(0)):
        _, counts = view.flatten(1).T.unique(dim=0, return_counts=True)
        assert int(counts.max()) == 12 * 12


def test_a_tiny_image_is_no_exception() -> None:
    assert harder(torch.zeros(1, 1, 2, 1), torch.Generator().manual_seed(0)).shape == (1, 1, 2, 1)
