"""What an export has to do with the run whose model it is: images to compare on, and an entry in its record."""

from pathlib import Path
from typing import Any

import torch

from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.exporting.export import Exported
from neural_polarizer.files import read_json, sha256_of_file, write_json
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.report.values import table
from neural_polarizer.rng import stream
from neural_polarizer.runs.purification import ATTACK_RECORD, RECORD

SAMPLES = 64
RANDOM = 16


def comparison_images(loaded: LoadedModel, spec: str | None, size: tuple[int, int] | None) -> ImageSet:
    """At most 64 images, of ``size`` or of that which the model's record says; their ``source`` tells what they are.

    Without a data spec: the clean images of the purification in whose folder the model's file lies, where they can be
    read here, and else random pixels.
    """
    shape, classes = size or loaded.record.image_size, loaded.record.num_classes
    known = None if loaded.record.classes is None else ClassNames(loaded.record.classes)
    form: dict[str, Any] = {"size": shape, "num_classes": classes, "classes": known, "limit": SAMPLES}
    if spec is not None:
        return read_images(spec, **form)
    source = "random pixels, without --images"
    if (loaded.path.parent / RECORD).exists():
        try:
            return read_images(_clean_images_of(loaded.path.parent), **form)
        except BadInputError as error:
            source += f"; {error}"
    if shape is None:
        raise BadInputError(f"{loaded.path}: does not say for what size of images it is; give --images or --size")
    pixels = torch.randint(256, (RANDOM, 3, *shape), generator=stream(0, "export"), dtype=torch.uint8)
    labels = torch.zeros(RANDOM, dtype=torch.int64)
    return ImageSet(pixels, labels, tuple(map(str, range(classes))), source)


def note_export(exported: Exported, loaded: LoadedModel) -> None:
    """Give the record of the run in whose folder both the model and its export lie the hashes of what was written."""
    folder = exported.path.parent
    if folder.resolve() != loaded.path.parent.resolve():
        return
    written = [path for path in (exported.path, exported.beside) if path is not None]
    for path in (folder / ATTACK_RECORD, folder / RECORD):
        if path.is_file():
            record = read_json(path)
            hashes = {each.name: sha256_of_file(each) for each in written}
            write_json(path, {**record, "files": {**table(record, "files"), **hashes}})


def is_noted(path: Path) -> bool:
    """Whether a record of the run in whose folder a file lies says that we wrote it."""
    records = [path.parent / name for name in (ATTACK_RECORD, RECORD)]
    return any(path.name in table(read_json(record), "files") for record in records if record.is_file())


def _clean_images_of(folder: Path) -> str:
    """The data spec of a purification's clean images, unless they would be fetched from elsewhere."""
    data = read_json(folder / RECORD).get("data")
    spec = data.get("clean") if isinstance(data, dict) else None
    if not isinstance(spec, str) or spec.startswith("hf:"):  # which may use the network
        raise BadInputError(f"{folder / RECORD}: names no clean images on this machine")
    return spec
