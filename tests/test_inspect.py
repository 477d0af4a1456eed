"""The fresh perturbations of the report."""

from typing import Literal

import pytest
import torch

from neural_polarizer.defenses import Defense, FineTuning
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.result import Outcome
from neural_polarizer.runs.inspect import Evidence, inspect
from toys import tiny_images, tiny_model

SETTINGS = NPD(radii=(0.5,))


@pytest.mark.parametrize(
    ("suspect", "defense", "radius"),
    [
        (None, SETTINGS, 0.5),
        (1, SETTINGS, 0.5),
        (None, NPD(target=1, radii=(0.5, 4.0)), 4.0),
        (None, FineTuning(), 3.0),
        (1, FineTuning(), 5.0),
        ("next", FineTuning(), 5.0),
    ],
)
def test_they_are_as_strong_as_those_that_were_defended_against(
    suspect: int | Literal["next"] | None, defense: Defense, radius: float
) -> None:
    purified = Outcome(tiny_model(), suspect=suspect)
    found, _ = inspect(tiny_model(), purified, tiny_images(12), defense, Evidence(), torch.device("cpu"), 0)
    assert found["radius"] == radius
    assert found["before"] == found["after"]  # the same network twice


def test_images_of_the_suspected_class_do_not_count() -> None:
    clean = tiny_images(12)
    alone = clean.select((clean.labels == 1).nonzero()[:, 0])
    purified = Outcome(tiny_model(), suspect=1)
    found, _ = inspect(tiny_model(), purified, alone, SETTINGS, Evidence(), torch.device("cpu"), 0)
    assert found["before"] == 0.0
