"""Labelled images from a data spec, whatever they come from."""

import os
from itertools import islice
from pathlib import Path

import torch

from neural_polarizer.data.annotations import TABLES
from neural_polarizer.data.classes import ClassNames, numbered
from neural_polarizer.data.columnar import arrow_rows, parquet_rows
from neural_polarizer.data.decode import MAX_PIXELS, decode_all, shown, transparency_note
from neural_polarizer.data.folders import folder_rows, listed_rows
from neural_polarizer.data.hubs import digits_rows, hugging_face_rows, torchvision_rows
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.rows import Rows, is_saved_to_disk
from neural_polarizer.data.tree import FOLLOW
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import at_home

FORMS = (
    "FILE.parquet; FILE.csv, .tsv or .jsonl (file_name, label); a folder of parquet files, or of a data set's "
    "save_to_disk; a folder with one sub-folder of images a class, or with metadata.csv, and ?links=follow behind it "
    "where links may leave it; torchvision:NAME[:SPLIT][?root=FOLDER&split=SPLIT]; hf:REPO[:SPLIT]; "
    "digits[:train|:test]"
)


def read_images(
    spec: str,
    *,
    size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    classes: ClassNames | None = None,
    limit: int | None = None,
) -> ImageSet:
    """Read labelled images into memory.

    A split that is not named is ``train``.  A class folder without images stays a class. The result's ``notes`` say
    what was left out and how the classes were numbered, where that is not plain.

    Args:
        spec: one of ``FORMS``; ``~`` is the home folder; write ``./digits`` for a folder of that name.
        size: height and width to resize to; None demands that all images have one size.
        num_classes: K of the model; None takes the data's own. Data with fewer classes will do where their names or
            numbers say which.
        classes: the names of the model's classes, by which those of the data are numbered.
        limit: read the first ``limit`` rows only, in the order of the source (folders: class by class).

    Raises:
        BadInputError: the spec, a file, an image or a label cannot be used.
        EnvironmentFaultError: the pixels do not fit into memory.
    """
    if limit is not None and limit < 1:
        raise BadInputError(f"limit must be at least 1, got {limit}")
    if size is not None and not (min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS):
        raise BadInputError(f"size must be a height and width of at least 1 and {MAX_PIXELS} pixels, got {size}")
    rows = _rows(spec)
    source = shown(spec)
    if not len(rows.labels):
        raise BadInputError(f"{source}: holds no images")
    found = numbered(
        rows.labels,
        rows.classes,
        in_order_of_names=rows.in_order_of_names,
        known=classes,
        num_classes=num_classes,
        source=source,
    )
    labels = torch.from_numpy(found.labels[:limit].copy())  # a bad image beyond the limit is never looked at
    pixels, transparent = decode_all(islice(rows.items, len(labels)), len(labels), size=size, source=source)
    notes = (*rows.notes, *found.notes, *transparency_note(source, transparent, len(labels)))
    return ImageSet(pixels, labels, found.classes, source, notes)


def _rows(spec: str) -> Rows:
    spec = at_home(spec)
    kind, _, rest = spec.partition(":")
    rest = at_home(rest)
    if kind == "torchvision" and rest:
        return torchvision_rows(rest)
    if kind == "hf" and rest:
        return arrow_rows(Path(rest)) if is_saved_to_disk(Path(rest)) else hugging_face_rows(rest)
    if kind == "digits":
        return digits_rows(rest or "train")
    path, linked = Path(spec), Path(spec.removesuffix(FOLLOW))
    try:
        if spec and path.is_dir():
            return folder_rows(path)
        if spec.endswith(FOLLOW) and linked.is_dir():
            return folder_rows(linked, follow_links=True)
        if path.is_file() and path.suffix.lower() == ".parquet":
            return parquet_rows([path])
        if path.is_file() and path.suffix.lower() in TABLES:
            return listed_rows(path)
    except (OSError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(f"{shown(spec)}: cannot be read ({error})") from None
    found = "no such file or folder" if not os.path.lexists(spec.replace("\0", "")) else "not usable as data"
    raise BadInputError(f"{shown(spec)}: {found}; a data spec is one of: {FORMS}")
