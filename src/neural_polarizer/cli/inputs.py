"""Reading what several commands take: a model, and the test data to measure it on."""

from pathlib import Path

from neural_polarizer.data.poison import read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.runs.attack import TRIGGERED
from neural_polarizer.runs.inspect import Evidence


def triggered_path(model: Path, given: Path | None) -> Path | None:
    """The triggered set that was named, or the one in the attack's folder."""
    if given is None and (model / TRIGGERED).is_file():
        return model / TRIGGERED
    return given


def read_evidence(
    test: str | None, triggered: Path | None, *, size: tuple[int, int] | None, num_classes: int
) -> Evidence:
    """The clean and the triggered test set, of one size; None for what was not named.

    Raises:
        BadInputError: a set is missing, damaged, or does not fit the model.
    """
    images = None if test is None else read_images(test, size=size, num_classes=num_classes)
    shape = size if images is None else images.image_size
    stamped = None if triggered is None else read_triggered(triggered, size=shape, num_classes=num_classes)
    return Evidence(test=images, triggered=stamped)
