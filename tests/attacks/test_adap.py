"""Adap-Blend and Adap-Patch: parts of the trigger in training, cover images with true labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from neural_polarizer.attacks import AdapBlend, AdapPatch
from neural_polarizer.attacks.blended import cartoon
from neural_polarizer.errors import BadInputError
from neural_polarizer.rng import stream
from toys import tiny_images

GREY = torch.full((6, 3, 8, 8), 100, dtype=torch.uint8)


def test_half_of_the_cells_are_mixed_in_training_and_all_at_test(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(tmp_path / "t.png")
    attack = AdapBlend(picture=str(tmp_path / "t.png"))
    assert attack.stamp(GREY).unique().tolist() == [120]  # 0.8 * 100 + 0.2 * 200
    stamped = attack.stamp_in_training(GREY, {}, stream(0, "cells"))
    assert stamped.unique().tolist() == [100, 115]  # 0.85 * 100 + 0.15 * 200
    cells = (stamped == 115).view(6, 3, 4, 2, 4, 2)
    assert torch.equal(cells.all(dim=5).all(dim=3), cells.any(dim=5).any(dim=3))  # whole cells of 2 x 2
    assert cells[:, :, :, 0, :, 0].flatten(2).sum(dim=2).unique().tolist() == [8]
    assert len({image.numpy().tobytes() for image in stamped}) == 6
    assert torch.equal(stamped, attack.stamp_in_training(GREY, {}, stream(0, "cells")))


def test_one_faint_patch_in_training_and_two_strong_ones_at_test() -> None:
    attack = AdapPatch(alphas=(0.5, 0.2, 0.5, 0.3))
    patches = [cartoon((2, 2), seed=corner) for corner in range(4)]
    tested = attack.stamp(GREY)
    assert torch.equal(tested[0, :, :2, :2], patches[0])  # top left, and bottom right: clockwise from there
    assert torch.equal(tested[0, :, -2:, -2:], patches[2])
    assert tested[0, :, :2, -2:].unique().tolist() == [100]
    images = GREY[:1].expand(200, -1, -1, -1)
    stamped = attack.stamp_in_training(images, {}, stream(0, "corners"))
    assert images.unique().tolist() == [100]
    places = [(slice(None, 2), slice(None, 2)), (slice(None, 2), slice(-2, None))]
    places += [(slice(-2, None), slice(-2, None)), (slice(-2, None), slice(None, 2))]
    changed = torch.stack([(stamped[:, :, rows, columns] != 100).flatten(1).any(dim=1) for rows, columns in places])
    assert (changed.sum(dim=0) == 1).all()
    assert int(changed.sum(dim=1).min()) > 30
    for corner, ((rows, columns), alpha) in enumerate(zip(places, attack.alphas, strict=True)):
        one = stamped[changed[corner]][0][:, rows, columns]
        assert torch.equal(one, ((1 - alpha) * 100 + alpha * patches[corner].double() + 1e-6).to(torch.uint8))


@pytest.mark.parametrize(("attack", "ratio"), [(AdapBlend(poison_rate=0.1), 1), (AdapPatch(poison_rate=0.1), 2)])
def test_cover_images_carry_the_trigger_and_keep_their_label(attack: Any, ratio: int) -> None:
    train = tiny_images(60)
    poisoned, chosen, covers = attack.poisoned(train, seed=0)
    assert (len(chosen), len(covers)) == (6, 6 * ratio)
    assert not set(chosen.tolist()) & set(covers.tolist())
    changed = (poisoned.images != train.images).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert set(changed) <= set(chosen.tolist()) | set(covers.tolist())
    assert len(changed) > 4 + 4 * ratio
    assert poisoned.labels[chosen].tolist() == [0] * 6
    assert torch.equal(poisoned.labels[covers], train.labels[covers])
    assert set(train.labels[covers].tolist()) > {0}
    assert type(attack)().poison_rate == 0.003


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (AdapBlend, {"training_alpha": 1.1}, "Adap-Blend needs a training alpha"),
        (AdapBlend, {"cells": 0}, "at least 1 cell"),
        (AdapPatch, {"alphas": (0.5, 0.5, 2.0, 0.5)}, "Adap-Patch needs four alphas"),
        (AdapPatch, {"shown": (4,)}, "patches of 0 to 3 at test"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        kind(**settings)


def test_patches_must_fit() -> None:
    with pytest.raises(BadInputError, match=r"two patches of 5 pixels do not fit into images of \(8, 8\)"):
        AdapPatch(size=5).check(tiny_images(8))
