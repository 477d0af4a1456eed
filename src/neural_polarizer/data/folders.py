"""Folders of images, one sub-folder a class, and folders of parquet files."""

import os
import re
from pathlib import Path

import numpy as np

from neural_polarizer.data.decode import SUFFIXES, shown
from neural_polarizer.data.parquet import parquet_rows
from neural_polarizer.data.rows import Rows
from neural_polarizer.errors import BadInputError


def folder_rows(root: Path) -> Rows:
    """The rows of a folder: of its parquet files if it has any, else class by class, each in the order of names.

    Raises:
        BadInputError: training and test files together, no images, or a link that leaves the folder.
    """
    names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    parquet = [root / name for name in names if name.lower().endswith(".parquet")]
    if parquet:
        splits = {re.split(r"[-_.]", path.name.lower())[0] for path in parquet}
        if len(splits & {"train", "test", "val", "valid", "validation"}) > 1:
            listed = ", ".join(shown(path.name) for path in parquet[:6])
            raise BadInputError(f"{shown(root)}: would mix training and test data; name one file of: {listed}")
        return parquet_rows([_inside(path, root) for path in parquet])
    classes = [name for name in names if _inside(root / name, root).is_dir()]
    if not classes:
        raise BadInputError(f"{shown(root)}: no parquet file and no class folder; use root/class_name/image.png")
    files = [(path, label) for label, name in enumerate(classes) for path in _class_files(root / name, root)]
    if not files:
        raise BadInputError(f"{shown(root)}: no images in its class folders {shown(classes[:6])}")
    labels = np.array([label for _, label in files], dtype=np.int64)
    return Rows(((path, shown(path)) for path, _ in files), labels, tuple(map(shown, classes)))


def _class_files(folder: Path, root: Path) -> list[Path]:
    """The images of a class, sorted by name; other files and hidden ones are left out."""
    paths = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        path = _inside(folder / entry.name, root) if entry.is_symlink() else folder / entry.name
        if entry.is_dir():
            raise BadInputError(f"{shown(path)}: a folder in a class folder; did you mean {shown(folder)}?")
        if path.suffix.lower() in SUFFIXES:
            if not entry.is_file():
                raise BadInputError(f"{shown(path)}: not a regular file")
            paths.append(path)
    return paths


def _inside(path: Path, root: Path) -> Path:
    try:
        inside = not path.is_symlink() or path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop, or a target that is not there
        inside = False
    if not inside:
        raise BadInputError(f"{shown(path)}: a symbolic link that leaves the folder or is broken; copy the file")
    return path
