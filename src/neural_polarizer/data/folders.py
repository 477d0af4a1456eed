"""Folders of images, one sub-folder a class, and folders of parquet or arrow files."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neural_polarizer.data.arrow import arrow_rows, is_saved_to_disk
from neural_polarizer.data.decode import SUFFIXES, one_line, shown
from neural_polarizer.data.parquet import parquet_rows
from neural_polarizer.data.rows import Rows
from neural_polarizer.errors import BadInputError

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"})
ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet: file, class, box; separated by tabs
MAX_ANNOTATIONS = 64 << 20  # bytes
MAX_DEPTH = 8  # of folders below a class
_IMAGES = "images"
_NO_CLASS = frozenset({_IMAGES, "image", "img", "imgs", "pictures"})
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})  # of macOS and Windows


@dataclass(frozen=True)
class _LeftOut:
    """Entries of a folder that are no images: names of hidden ones, and how many others by their ending."""

    hidden: list[str]
    others: Counter[str]

    def told(self) -> str:
        """In words; empty where nothing was left out."""
        listed = ", ".join(f"{shown(ending)}: {count}" for ending, count in sorted(self.others.items())[:8])
        names = ", ".join(shown(name) for name in sorted(set(self.hidden))[:4])
        parts = [f"{self.others.total()} files that are no images by their ending ({listed})"] * bool(self.others)
        parts += [f"{len(self.hidden)} hidden or system entries ({names})"] * bool(self.hidden)
        return " and ".join(parts)


def folder_rows(root: Path) -> Rows:
    """The rows of a folder: of its parquet or arrow files if it has any, else class by class, each in order of names.

    Hidden files and folders and those of operating systems are left out, and so are files that are no images; the notes
    say how many. Folders below a class belong to that class, as in Tiny ImageNet.

    Raises:
        BadInputError: training and test data together, no images, or a link that leaves the folder.
    """
    if is_saved_to_disk(root):
        return arrow_rows(root)
    entries = sorted(entry.name for entry in root.iterdir())
    names = [name for name in entries if not _is_hidden(name)]
    parquet = [root / name for name in names if name.lower().endswith(".parquet")]
    if not parquet and (root / "data").is_dir() and not (root / "data").is_symlink():  # a data set's repository
        inside = sorted((root / "data").iterdir())
        parquet = [path for path in inside if path.suffix.lower() == ".parquet" and not _is_hidden(path.name)]
    if parquet:
        return _parquet_rows(parquet, root)
    classes = [name for name in names if _inside(root / name, root).is_dir()]
    if ANNOTATIONS in names:
        return _annotated_rows(root)
    _check_layout(root, classes)
    left_out = _LeftOut([name for name in entries if _is_hidden(name)], Counter())
    files = [(path, label) for label, name in enumerate(classes) for path in _files(root / name, root, left_out)]
    if not files:
        found = f"; left out {told}" if (told := left_out.told()) else ""
        raise BadInputError(f"{shown(root)}: no images in its class folders {shown(classes[:6])}{found}")
    labels = np.array([label for _, label in files], dtype=np.int64)
    return Rows(
        ((path, shown(path)) for path, _ in files),
        labels,
        tuple(map(shown, classes)),
        in_order_of_names=True,
        notes=(f"{shown(root)}: left out {told}",) if (told := left_out.told()) else (),
    )


def _parquet_rows(paths: list[Path], root: Path) -> Rows:
    splits = {re.split(r"[-_.]", path.name.lower())[0] for path in paths}
    if len(splits & SPLITS) > 1:
        listed = ", ".join(shown(path.relative_to(root)) for path in paths[:6])
        raise BadInputError(f"{shown(root)}: would mix training and test data; name one file of: {listed}")
    return parquet_rows([_inside(path, root) for path in paths])


def _check_layout(root: Path, classes: list[str]) -> None:
    """Refuse a folder whose sub-folders are not classes.

    Raises:
        BadInputError: it holds splits, one folder around the classes, or images without classes.
    """
    if not classes:
        raise BadInputError(
            f"{shown(root)}: no parquet file and no class folder; use root/class_name/image.png, for some of the "
            "model's classes too"
        )
    splits = [name for name in classes if name.lower() in SPLITS]
    nested = [name for name in splits if next(_folders(root / name), None) is not None]
    if nested and (len(splits) == len(classes) or len(splits) > 1):
        listed = " or ".join(shown(root / name) for name in splits)
        raise BadInputError(f"{shown(root)}: holds splits, each a folder in a class folder; did you mean {listed}?")
    if splits and len(splits) == len(classes):
        raise BadInputError(f"{shown(root)}: its folders {shown(splits)} are splits without class folders in them")
    if len(classes) == 1 and classes[0].lower() in _NO_CLASS:
        raise BadInputError(
            f"{shown(root)}: its only folder is {classes[0]!r}, which names no class; give each class a folder of its "
            f"own, or a file {ANNOTATIONS} beside it with lines of a file's name, a tab and its class"
        )
    if len(classes) == 1:
        below = sorted(_folders(root / classes[0]))
        if len(below) > 1 or (below and below[0] != _IMAGES):
            raise BadInputError(
                f"{shown(root / classes[0] / below[0])}: a folder in the only class folder; did you mean "
                f"{shown(root / classes[0])}?"
            )


def _folders(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_hidden(entry.name) and entry.is_dir(follow_symlinks=False):
                yield entry.name


def _annotated_rows(root: Path) -> Rows:
    """Tiny ImageNet's validation images: all in one folder, with a file that names the class of each."""
    path = _inside(root / ANNOTATIONS, root)
    try:
        if not path.is_file() or path.stat().st_size > MAX_ANNOTATIONS:
            raise BadInputError(f"{shown(path)}: not a regular file of reasonable size")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{shown(path)}: cannot be read ({one_line(error)})") from None
    told = dict(line.split("\t")[:2] for line in lines if line.count("\t"))
    folder = root / _IMAGES if (root / _IMAGES).is_dir() else root
    names = sorted(entry.name for entry in os.scandir(_inside(folder, root)) if _is_image(entry.name))
    missing = [name for name in names if name not in told]
    if not names or missing:
        reason = f"does not name the class of {shown(missing[0])}" if missing else f"no images in {shown(folder)}"
        raise BadInputError(f"{shown(path)}: {reason}; get the data set again")
    classes = sorted(set(told.values()))
    places = {name: i for i, name in enumerate(classes)}
    labels = np.array([places[told[name]] for name in names], dtype=np.int64)
    items = ((_inside(folder / name, root), shown(folder / name)) for name in names)
    return Rows(items, labels, tuple(map(shown, classes)), in_order_of_names=True)


def _files(folder: Path, root: Path, left_out: _LeftOut, depth: int = 0) -> Iterator[Path]:
    """The images of a class, sorted by name; what is left out is counted."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_hidden(entry.name):
            left_out.hidden.append(entry.name)
            continue
        path = _inside(folder / entry.name, root) if entry.is_symlink() else folder / entry.name
        if entry.is_dir():
            if entry.is_symlink() or depth == MAX_DEPTH:
                reason = "a link to a folder" if entry.is_symlink() else "too many folders in one another"
                raise BadInputError(f"{shown(path)}: {reason} in a class folder; copy its images into the class folder")
            yield from _files(path, root, left_out, depth + 1)
        elif path.suffix.lower() in SUFFIXES:
            if not entry.is_file():
                raise BadInputError(f"{shown(path)}: not a regular file")
            yield path
        else:
            left_out.others[path.suffix.lower() or "no ending"] += 1


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _is_image(name: str) -> bool:
    return not _is_hidden(name) and Path(name).suffix.lower() in SUFFIXES


def _inside(path: Path, root: Path) -> Path:
    try:
        inside = not path.is_symlink() or path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop, or a target that is not there
        inside = False
    if not inside:
        raise BadInputError(f"{shown(path)}: a symbolic link that leaves the folder or is broken; copy the file")
    return path
