"""Images that two sets have in common."""

from dataclasses import replace

import torch

from neural_polarizer.data.images import count_shared
from run_files import coloured


def test_images_are_shared_whatever_their_order_and_labels() -> None:
    ours, others = coloured(12, 0), coloured(30, 1)
    assert count_shared(ours, others) == 0
    mixed = replace(others, images=torch.cat([others.images[:28], ours.images[[7, 3]]]))
    assert count_shared(ours, mixed) == 2
    assert count_shared(mixed, ours) == 2
    almost = ours.images.clone()
    almost[0, 0, 0, 0] ^= 1
    assert count_shared(replace(ours, images=almost), ours) == 11
    assert count_shared(ours, coloured(12, 0, (8, 8))) == 0
