"""Labelled images from a data spec, whatever they come from."""

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from neural_polarizer.data.annotations import TABLES, table_rows
from neural_polarizer.data.classes import ClassNames, Numbered, class_names, numbered
from neural_polarizer.data.columnar import arrow_rows, parquet_rows
from neural_polarizer.data.decode import decode_all, height_and_width, resized_note, transparency_note
from neural_polarizer.data.folders import ARCHIVES, RAW, RAW_REMEDY, folder_rows
from neural_polarizer.data.hubs import digits_rows, hugging_face_rows, torchvision_rows
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.rows import Rows, is_saved_to_disk
from neural_polarizer.data.tree import FOLLOW, Tree
from neural_polarizer.errors import BadInputError, refusing, shown
from neural_polarizer.files import at_home, user_path

FORMS = (
    "FILE.parquet; FILE.csv, .tsv or .jsonl (file_name, label); a folder of parquet files, or of a data set's "
    "save_to_disk; a folder with one sub-folder of images a class, or with metadata.csv, and ?links=follow behind it "
    "where links may leave it; torchvision:NAME[:SPLIT][?root=FOLDER&split=SPLIT]; hf:REPO[:SPLIT]; "
    "digits[:train|:test]"
)

ARRAYS = (".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".mat", ".h5")


def read_images(
    spec: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    classes: ClassNames | Sequence[str] | Mapping[Any, Any] | None = None,
    limit: int | None = None,
) -> ImageSet:
    """Read labelled images into memory.

    A split that is not named is ``train``.  A class folder without images stays a class. The result's ``notes`` say
    what was left out and how the classes were numbered, where that is not plain.

    Args:
        spec: one of ``FORMS``, or a path; ``~`` is the home folder; write ``./digits`` for a folder of that name.
        size: height and width to resize to, or one number for both; None demands that all images have one size.
        num_classes: K of the model; None takes the data's own. Data with fewer classes will do where their names or
            numbers say which.
        classes: the model's class names (a list, {name: number} or {number: name}), which number those of the data.
        limit: read the first ``limit`` rows only, in the order of the source (folders: class by class).

    Raises:
        BadInputError: the spec, a file, an image or a label cannot be used.
        EnvironmentFaultError: the pixels do not fit into memory.
    """
    for name, value in (("limit", limit), ("num_classes", num_classes)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise BadInputError(f"{name} must be a whole number of at least 1, got {value!r}")
    shape = None if size is None else height_and_width(size)
    text = spec if isinstance(spec, str) else os.path.join(os.curdir, user_path(spec))  # noqa: PTH118 (Path drops ./)
    rows, source = _rows(text), shown(text)
    if not len(rows.labels):
        raise BadInputError(f"{source}: holds no images")
    known = None if classes is None else class_names(classes, said_by="classes")
    found = _numbered(rows, known, num_classes, source)
    labels = torch.from_numpy(found.labels[:limit].copy())  # a bad image beyond the limit is never looked at
    read = decode_all(islice(rows.items, len(labels)), len(labels), size=shape, source=source)
    notes = (*transparency_note(source, read.transparent, len(labels)), *resized_note(source, read))
    return ImageSet(read.pixels, labels, found.classes, source, (*rows.notes, *found.notes, *notes), found.own)


def _numbered(rows: Rows, known: ClassNames | None, num_classes: int | None, source: str) -> Numbered:
    return numbered(
        rows.labels,
        rows.classes,
        in_order_of_names=rows.in_order_of_names,
        known=known,
        num_classes=num_classes,
        source=source,
        beside=rows.beside,
    )


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
    with refusing(f"{shown(spec)}: cannot be read", OSError, ValueError):
        if spec and path.is_dir():
            return folder_rows(path)
        if spec.endswith(FOLLOW) and linked.is_dir():
            return folder_rows(linked, follow_links=True)
        if path.is_file() and path.suffix.lower() == ".parquet":
            return parquet_rows([path])
        if path.is_file() and path.suffix.lower() in TABLES and (rows := table_rows(Tree(path.parent), path)):
            return rows
    if path.is_file() and RAW.search(path.name):
        raise BadInputError(f"{shown(spec)}: one of MNIST's raw files; {RAW_REMEDY}")
    if path.is_file() and path.suffix.lower() in ARCHIVES:
        raise BadInputError(f"{shown(spec)}: an archive; unpack it, and give the folder that comes out")
    if path.is_file() and path.suffix.lower() in ARRAYS:
        raise BadInputError(f"{shown(spec)}: arrays; save them as images, or pass (images, labels) in Python")
    found = "no such file or folder" if not os.path.lexists(spec.replace("\0", "")) else "not usable as data"
    raise BadInputError(f"{shown(spec)}: {found}; a data spec is one of: {FORMS}")
