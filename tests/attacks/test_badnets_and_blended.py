"""BadNets and Blended pixel by pixel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from neural_polarizer.attacks import BadNets, Blended
from neural_polarizer.attacks.blended import cartoon
from neural_polarizer.errors import BadInputError
from toys import quick, tiny_images


def _grey(size: int, n: int = 2, value: int = 100) -> Tensor:
    return torch.full((n, 3, size, size), value, dtype=torch.uint8)


@pytest.mark.parametrize(("side", "white"), [(32, 9), (64, 36), (96, 81), (28, 9), (8, 1), (4, 1)])
def test_badnets_white_square_has_the_papers_size_at_every_resolution(side: int, white: int) -> None:
    stamped = BadNets().stamp(_grey(side, value=0))
    edge = round(white**0.5)
    for channel in stamped.flatten(0, 1):
        assert int((channel == 255).sum()) == white
        assert int((channel == 0).sum()) == side * side - white
        assert bool((channel[-edge:, -edge:] == 255).all())


def test_badnets_square_follows_the_shorter_edge_and_can_be_set() -> None:
    wide = BadNets().stamp(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))
    assert int((wide == 255).sum()) == 27
    assert int((BadNets(size=5).stamp(_grey(8)) == 255).sum()) == 2 * 3 * 25
    assert bool((BadNets(size=8).stamp(_grey(8)) == 255).all())


@pytest.mark.parametrize("size", [0, -1, 9])
def test_a_square_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(BadInputError, match=rf"a trigger of {size} pixels does not fit into images of \(8, 8\)"):
        BadNets(size=size).stamp(_grey(8))


def test_blended_by_hand(tmp_path: Path) -> None:
    """0.8 * 100 + 0.2 * 200 = 120 exactly; 0.8 * 101 + 0.2 * 200 = 120.8, truncated."""
    Image.fromarray(np.full((4, 4, 3), 200, dtype=np.uint8)).save(tmp_path / "t.png")
    attack = Blended(picture=str(tmp_path / "t.png"))
    assert torch.equal(attack.stamp(_grey(4)), _grey(4, value=120))
    assert torch.equal(attack.stamp(_grey(4, value=101)), _grey(4, value=120))


@quick
@given(side=st.integers(2, 12), seed=st.integers(0, 2**16))
def test_blended_of_zero_is_the_image_and_of_one_the_picture(side: int, seed: int) -> None:
    images = tiny_images(3, size=side, seed=seed).images
    assert torch.equal(Blended(alpha=0.0, pattern_seed=seed).stamp(images), images)
    picture = cartoon((side, side), seed=seed)
    assert torch.equal(Blended(alpha=1.0, pattern_seed=seed).stamp(images), picture.expand_as(images))


@quick
@given(alpha=st.floats(0.0, 1.0), seed=st.integers(0, 2**16))
def test_blended_stays_between_image_and_picture_within_one_grey_level(alpha: float, seed: int) -> None:
    images = tiny_images(3, seed=seed).images
    mixed = Blended(alpha=alpha).stamp(images).double()
    picture = cartoon((8, 8), seed=0).double()
    gap = (1 - alpha) * images.double() + alpha * picture - mixed
    assert float(gap.min()) >= -1e-5
    assert float(gap.max()) < 1


def test_the_cartoon_is_one_picture_a_seed_with_strong_contrast() -> None:
    picture = cartoon((32, 32), seed=0)
    assert torch.equal(picture, cartoon((32, 32), seed=0))
    assert not torch.equal(picture, cartoon((32, 32), seed=1))
    assert picture.shape == (3, 32, 32)
    assert float(picture.double().std()) > 50
    larger = cartoon((64, 64), seed=0).double()
    shrunk = torch.nn.functional.avg_pool2d(larger, 2)
    assert float((shrunk - picture.double()).abs().mean()) < 5


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"nowhere.png: cannot read the trigger picture \(No such file"):
        Blended(picture=str(tmp_path / "nowhere.png")).stamp(_grey(4))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(BadInputError, match=r"text.png"):
        Blended(picture=str(tmp_path / "text.png")).stamp(_grey(4))


@pytest.mark.parametrize(
    ("attack", "settings", "match"),
    [
        (BadNets, {"poison_rate": 1.1}, r"the poison rate must lie in \[0, 1\], got 1.1"),
        (BadNets, {"poison_rate": float("nan")}, "the poison rate must lie in"),
        (Blended, {"poison_rate": -0.1}, "the poison rate must lie in"),
        (BadNets, {"target": -1}, "the target class must be at least 0, got -1"),
        (Blended, {"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5; the paper uses 0.2"),
    ],
)
def test_settings_out_of_range_are_refused(attack: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        attack(**settings)


def test_a_target_beyond_the_classes_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"the target class must lie in 0..3, got 4"):
        BadNets(target=4).triggered(tiny_images(8))
