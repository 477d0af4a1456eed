"""Reading what several commands take: a model, and the test data to measure it on."""

import sys
from pathlib import Path
from typing import Protocol, runtime_checkable

import typer

from neural_polarizer.data.classes import ClassNames, read_class_names
from neural_polarizer.data.poison import PoisonLabel, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.models.definition import Definition
from neural_polarizer.runs.attack import TRIGGERED
from neural_polarizer.runs.inspect import Evidence


def given_words(context: typer.Context) -> list[str]:
    """The words of the command line, also where ``main`` was called with a list of them."""
    words = context.find_root().obj
    return [str(word) for word in words] if isinstance(words, list) else sys.argv[1:]


@runtime_checkable
class NamesModel(Protocol):
    """The options that say which model is meant and how its file is read."""

    @property
    def model(self) -> Path: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def profile(self) -> str | None: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def output(self) -> str | None: ...
    @property
    def channels(self) -> str | None: ...


def read_model(asked: NamesModel, network: str | Definition | None) -> LoadedModel:
    """The model that was named; ``network`` is what ``--arch`` means.

    Raises:
        BadInputError: its file cannot be read, or does not fit.
    """
    return load_model(
        asked.model,
        architecture=network,
        num_classes=asked.num_classes,
        profile=asked.profile,
        weights=asked.weights,
        output=asked.output,
        channels=None if asked.channels is None else int(asked.channels),
    )


def triggered_path(model: Path, given: Path | None) -> Path | None:
    """The triggered set that was named, or the one in the attack's folder."""
    if given is None and (model / TRIGGERED).is_file():
        return model / TRIGGERED
    return given


def classes_of(loaded: LoadedModel, given: Path | None) -> ClassNames | None:
    """The names of the model's classes: those of the file that the user gave, else those that came with the model.

    Raises:
        BadInputError: the file cannot be read.
    """
    if given is not None:
        return read_class_names(given)
    return None if loaded.record.classes is None else ClassNames(loaded.record.classes, said_by=str(loaded.path))


def parse_poison_label(text: str | None) -> PoisonLabel | None:
    """A class number or "next".

    Raises:
        typer.BadParameter: it is neither.
    """
    if text is None or text == "next":
        return None if text is None else "next"
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"--poison-label {text!r}: expected a class number or 'next'") from None


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

    Raises:
        BadInputError: a set is missing, damaged, or does not fit the model.
    """
    images = None if test is None else read_images(test, size=size, num_classes=num_classes, classes=classes)
    shape = size if images is None else images.image_size
    stamped = None
    if triggered is not None:
        stamped = read_triggered(
            triggered, size=shape, num_classes=num_classes, classes=classes, poison_label=poison_label
        )
    return Evidence(test=images, triggered=stamped)
