"""Files that name the class of each image, in the forms that other tools write."""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neural_polarizer.data.decode import SUFFIXES
from neural_polarizer.data.labels import class_labels
from neural_polarizer.data.rows import LABEL_COLUMNS, SPLITS, Rows
from neural_polarizer.data.tree import Tree, is_hidden, read_text
from neural_polarizer.errors import BadInputError, refusing, shown

ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet: file, class, box; separated by tabs
METADATA = ("metadata.csv", "metadata.jsonl")
TABLES = (".csv", ".tsv", ".jsonl")  # endings of tables that may be named themselves
FILE_COLUMN = "file_name"
_FILES = (FILE_COLUMN, "filename", "file", "path", "image", "file_path", "filepath", "image_path", "img_path")
_LABELS = (*LABEL_COLUMNS, "class_id", "classid", "class_name")  # GTSRB's is ClassId
_PARTS = ("split", "set", "subset", "partition", "fold")
_FLAGS = ("is_valid", "is_val", "is_test", "is_train")  # true or false
IMAGES = "images"
MAX_BYTES = 64 << 20
MAX_ROWS = 5_000_000


def annotated_rows(tree: Tree) -> Rows | None:
    """The rows that a file of annotations in the folder names; None without one that names classes.

    Raises:
        BadInputError: it cannot be read, or does not fit the images.
    """
    if (tree.root / ANNOTATIONS).exists():
        return _tiny_imagenet(tree)
    found = next((tree.root / name for name in METADATA if (tree.root / name).exists()), None)
    return _web_dataset(tree) if found is None else table_rows(tree, tree.inside(found))


def _web_dataset(tree: Tree) -> Rows | None:
    """A WebDataset as it is unpacked, with the class of 0.png in 0.cls; None for other folders."""
    files = [Path(entry.name) for entry in os.scandir(tree.root) if entry.name.endswith(".cls")]
    labels = {path.stem: path for path in files if not is_hidden(path.name)}
    if not labels:
        return None
    paths = sorted(_images_in({tree.root}))
    bare = next((path for path in paths if path.stem not in labels), None)
    if bare is not None or not paths:
        lacking = "no image" if bare is None else f"none for {shown(bare.name)}"
        raise BadInputError(f"{shown(tree.root)}: has files *.cls, but {lacking}")
    values = [read_text(tree.inside(tree.root / labels[path.stem]), MAX_BYTES).strip() for path in paths]
    items = ((tree.inside(path), shown(path)) for path in paths)
    return Rows(items, class_labels(values, f"{shown(tree.root)}: files *.cls"), None)


def _tiny_imagenet(tree: Tree) -> Rows:
    """Tiny ImageNet's validation images: all in one folder, with a file that names the class of each."""
    root = tree.root
    path = tree.inside(root / ANNOTATIONS)
    told = dict(line.split("\t")[:2] for line in read_text(path, MAX_BYTES).splitlines() if line.count("\t"))
    folder = root / IMAGES if (root / IMAGES).is_dir() else root
    names = sorted(path.name for path in _images_in({tree.inside(folder)}))
    missing = [name for name in names if name not in told]
    if not names or missing:
        reason = f"does not name the class of {shown(missing[0])}" if missing else f"no images in {shown(folder)}"
        raise BadInputError(f"{shown(path)}: {reason}; get the data set again")
    classes = sorted(set(told.values()))
    places = {name: i for i, name in enumerate(classes)}
    labels = np.array([places[told[name]] for name in names], dtype=np.int64)
    items = ((tree.inside(folder / name), shown(folder / name)) for name in names)
    return Rows(items, labels, tuple(map(shown, classes)), in_order_of_names=True)


def table_rows(tree: Tree, path: Path) -> Rows | None:
    """The rows of a table of files, which count from the folder, and labels; None for metadata without labels.

    Raises:
        BadInputError: it cannot be read, or does not fit the images.
    """
    text, where = read_text(path, MAX_BYTES), shown(path)
    with refusing(f"{where}: cannot be read", csv.Error, ValueError, RecursionError):
        rows = _jsonl(text, where) if path.suffix.lower() == ".jsonl" else _csv(text, where)
    keys = list(rows[0]) if rows else []
    file, label = (next((name for name in wanted if name in keys), None) for wanted in (_FILES, _LABELS))
    if label is None or file is None:
        if file is not None and path.name in METADATA and any(entry.is_dir() for entry in tree.root.iterdir()):
            return None
        raise BadInputError(
            f"{where}: needs the columns {FILE_COLUMN} and {' or '.join(LABEL_COLUMNS)}; found {shown(keys[:10])}"
        )
    column = next((name for name in (*_PARTS, *_FLAGS) if name in keys and name != label), None)
    parts = {str(row.get(column)).strip().lower() for row in rows} if column else set()
    if len(parts if column in _FLAGS else parts & SPLITS) > 1:
        raise BadInputError(
            f"{where}: would mix training and test data, as its column {column} tells ({shown(sorted(parts)[:6])}); "
            "keep the rows of one in a file of their own"
        )
    names, values = ([row.get(column) for row in rows] for column in (file, label))
    paths = []
    for row, (name, value) in enumerate(zip(names, values, strict=True), start=1):
        if not isinstance(name, str) or name == "" or value in (None, ""):
            raise BadInputError(f"{where}: row {row} has no {file} or no {label}")
        try:
            paths.append(tree.named(name))
        except BadInputError as error:
            raise BadInputError(f"{where}: row {row}: {error}") from None
    gone = next((each for each in paths if not each.is_file()), None)
    if gone is not None:
        raise BadInputError(f"{where}: names {shown(gone)}, which is no file here; names count from {shown(tree.root)}")
    told = dict(zip(paths, values, strict=True))
    twice = next((path for path, value in zip(paths, values, strict=True) if told[path] != value), None)
    if twice is not None:
        raise BadInputError(f"{where}: names {shown(twice)} twice, with different labels; keep the right one")
    items = ((each, shown(each)) for each in paths)
    unnamed = _images_in({each.parent for each in paths}) - set(paths)
    notes = (f"{shown(tree.root)}: left out {len(unnamed)} images that {path.name} does not name",) * bool(unnamed)
    return Rows(items, class_labels(values, f"{where}: column {label!r}"), None, notes=notes)


def _images_in(folders: Iterable[Path]) -> set[Path]:
    names = ((folder, entry.name) for folder in folders for entry in os.scandir(folder))
    return {folder / name for folder, name in names if Path(name).suffix.lower() in SUFFIXES and not is_hidden(name)}


def _csv(text: str, where: str) -> Sequence[dict[str, Any]]:
    header = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    fields = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    if len(set(fields)) < len(fields):
        raise BadInputError(f"{where}: names a column twice")
    rows: list[dict[Any, Any]] = _bounded(list(islice(reader, MAX_ROWS + 1)), where)
    if any(any(row.get(None, ())) for row in rows):  # under None is what is behind the last column
        raise BadInputError(f"{where}: a row has more cells than the header; put texts with commas in double quotes")
    return rows


def _jsonl(text: str, where: str) -> Sequence[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [json.loads(line) for line in _bounded(lines, where)]
    if not all(isinstance(row, dict) for row in rows):
        raise BadInputError(f'{where}: needs an object a line, as {{"{FILE_COLUMN}": ..., "label": ...}}')
    return rows


def _bounded(rows: list[Any], where: str) -> list[Any]:
    if len(rows) > MAX_ROWS:
        raise BadInputError(f"{where}: holds more than {MAX_ROWS:,} rows; use fewer")
    return rows
