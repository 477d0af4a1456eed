"""Harder copies: of the same size and range, other than the originals, and drawn by the seed only."""

import pytest
import torch

from neural_polarizer.defenses.stand_ins.copies import harder
from neural_polarizer.defenses.stand_ins.settings import Copies


def test_copies_are_other_images_of_the_same_kind() -> None:
    pixels = torch.rand(6, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    first, again, other = (harder(pixels, Copies(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == pixels.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("copies", "side"), [(Copies(), 12), (Copies(covered=0.5), 16)])
def test_a_square_of_each_is_covered_by_one_colour(copies: Copies, side: int) -> None:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for view in harder(pixels, copies, torch.Generator().manual_seed(0)):
        _, counts = view.flatten(1).T.unique(dim=0, return_counts=True)
        assert int(counts.max()) == side * side


def test_contrast_and_brightness_change_by_no_more_than_they_may() -> None:
    pixels = 0.4 + 0.2 * torch.rand(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    copies = Copies(contrast=0.2, brightness=0.05, moved=0.0, covered=0.0)  # moved and covered by one pixel at least
    views = harder(pixels, copies, torch.Generator().manual_seed(0))
    brighter = views.mean(dim=(1, 2, 3)) - pixels.mean(dim=(1, 2, 3))
    wider = views.std(dim=(1, 2, 3)) / pixels.std(dim=(1, 2, 3))
    assert 0.04 < float(brighter.abs().max()) < 0.06
    assert 1.15 < float(wider.max()) < 1.25
    assert 0.75 < float(wider.min()) < 0.85


def test_a_tiny_image_is_no_exception() -> None:
    assert harder(torch.zeros(1, 1, 2, 1), Copies(), torch.Generator().manual_seed(0)).shape == (1, 1, 2, 1)
