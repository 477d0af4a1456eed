"""Reading what several commands take beside a model: names of classes, and the test data to measure it on."""

from pathlib import Path
from typing import Any

import typer

from neural_polarizer.data.annotations import read_class_names
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.poison import PoisonLabel, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import WrongUsageError
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.runs.attack import TRIGGERED
from neural_polarizer.runs.inspect import Evidence


def triggered_path(model: Path, given: Path | None) -> Path | None:
    """The triggered set that was named, or the one in the attack's folder."""
    if given is None and (model / TRIGGERED).is_file():
        return model / TRIGGERED
    return given


def classes_of(loaded: LoadedModel, given: Path | None) -> ClassNames | None:
    """The names of the model's classes: those of the file that the user gave, else those that came with the model."""
    if given is not None:
        return read_class_names(given)
    return None if loaded.record.classes is None else ClassNames(loaded.record.classes, said_by=str(loaded.path))


def parse_label(text: str | None, option: str, expected: str = "a class number or 'next'") -> PoisonLabel | None:
    """A class number or "next", as ``option`` has it; anything else than what is ``expected`` is refused."""
    if text is None:
        return None
    if text == "next":
        return "next"
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r}: expected {expected}") from None


def read_evidence(
    test: str | None,
    triggered: Path | None,
    *,
    size: tuple[int, int] | None,
    num_classes: int,
    classes: ClassNames | None = None,
    poison_label: PoisonLabel | None = None,
) -> Evidence:
    """The clean and the triggered test set, of one size; None for what was not named.

    A set that is missing, damaged, or does not fit the model is refused, and so is a label for images that are none.
    """
    if triggered is None and poison_label is not None:
        raise WrongUsageError("--poison-label is for images with the trigger; give --triggered, too")
    form: dict[str, Any] = {"num_classes": num_classes, "classes": classes}
    images = None if test is None else read_images(test, size=size, **form)
    if triggered is None:
        return Evidence(test=images)
    shape = size if images is None else images.image_size
    return Evidence(test=images, triggered=read_triggered(triggered, size=shape, poison_label=poison_label, **form))
