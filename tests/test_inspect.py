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


def test_before_and_after_are_those_of_the_two_networks() -> None:
    """A network that always says 3 is led nowhere else; one that always says 1 is, before anything is done."""
    always = {label: tiny_model() for label in (1, 3)}
    for label, network in always.items():
        with torch.no_grad():
            network.get_parameter("network.head.bias")[label] = 1e4
    purified = Outcome(always[3], suspect=1)
    found, _ = inspect(always[1], purified, tiny_images(12), SETTINGS, Evidence(), torch.device("cpu"), 0)
    assert (found["before"], found["after"]) == (1.0, 0.0)


def test_no_pass_is_larger_than_the_batch_size() -> None:
    sizes: list[int] = []
    model = tiny_model()
    model.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    for suspect in (None, 1):
        small = NPD(radii=(0.5,), batch_size=5)
        inspect(model, Outcome(model, suspect=suspect), tiny_images(12), small, Evidence(), torch.device("cpu"), 0)
    assert max(sizes) == 5


def test_images_of_the_suspected_class_do_not_count() -> None:
    clean = tiny_images(12)
    alone = clean.select((clean.labels == 1).nonzero()[:, 0])
    purified = Outcome(tiny_model(), suspect=1)
    found, _ = inspect(tiny_model(), purified, alone, SETTINGS, Evidence(), torch.device("cpu"), 0)
    assert found["before"] == 0.0
