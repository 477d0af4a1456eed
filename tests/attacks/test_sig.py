"""SIG's sinusoid."""

from typing import Any

import numpy as np
import pytest
import torch

from neural_polarizer.attacks import SIG
from neural_polarizer.errors import BadInputError


def test_the_sinusoid_by_numpy() -> None:
    images = torch.full((1, 3, 4, 32), 100, dtype=torch.uint8)
    stamped = SIG().stamp(images)
    wave = 100 + 40 * np.sin(2 * np.pi * 6 * np.arange(32) / 32)
    expected = np.floor(wave + 1e-6).astype(np.uint8)
    assert (stamped == torch.from_numpy(expected)).all()
    assert int(stamped[0, 0, 0, 4]) == 60  # sin(3 pi / 2 + 2 pi k) at its lowest: 6 * 4 / 32 = 3/4


def test_black_and_white_stay_in_range() -> None:
    images = torch.stack([torch.zeros(3, 2, 32), torch.full((3, 2, 32), 255.0)]).to(torch.uint8)
    stamped = SIG(delta=255.0).stamp(images).int()
    wave = torch.sin(2 * torch.pi * 6 * torch.arange(32) / 32)
    assert (stamped[0][..., wave < -0.01] == 0).all()
    assert (stamped[1][..., wave > 0.01] == 255).all()
    assert (stamped[0][..., wave > 0.1] > 20).all()


@pytest.mark.parametrize("settings", [{"delta": 0.0}, {"delta": 256.0}, {"frequency": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="SIG needs a delta"):
        SIG(**settings)
