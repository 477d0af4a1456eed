"""Folders of images, one sub-folder a class, and folders of parquet or arrow files."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neural_polarizer.data.annotations import ANNOTATIONS, IMAGES, METADATA, TABLES, annotated_rows
from neural_polarizer.data.class_files import read_class_names
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.columnar import arrow_rows, parquet_rows
from neural_polarizer.data.decode import SUFFIXES
from neural_polarizer.data.rows import SPLITS, Rows, check_whole, is_saved_to_disk, label_in
from neural_polarizer.data.tree import Tree, is_hidden
from neural_polarizer.errors import BadInputError, shown

_OTHER_PARTS = frozenset({"clean", "triggered", "poisoned", "backdoored"})
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
RAW = re.compile(r"[-.]idx\d-ubyte(\.gz)?$")
"""How the names of MNIST's files end, and of those that are made like it."""
RAW_REMEDY = "put them, unpacked, into DIR/MNIST/raw and give torchvision:MNIST?root=DIR (extra zoo)"
_PICKLED = {"data_batch_1": "CIFAR10", "meta": "CIFAR100"}  # a file of data sets that torchvision can read, not we
_SPLIT_OF = re.compile(rf"({'|'.join(sorted(SPLITS))})([ _-]?(images?|imgs?|pictures|data|set|split))?", re.IGNORECASE)
_LIKE_A_SPLIT = re.compile(rf"(.*[ _-])?({'|'.join(sorted(SPLITS))}|fold[ _-]?[0-9]+)([ _-].*)?", re.IGNORECASE)
CLASS_FILES = ("class_to_idx.json", "class_indices.json", "classes.json", "classes.txt", "class_names.txt")
MAX_DEPTH = 8  # of folders below a class
MAX_IN_REPOSITORY = 32  # entries of a folder that may be a data set's repository
_NO_CLASS = frozenset({IMAGES, "image", "img", "imgs", "pictures"})


@dataclass(frozen=True)
class _LeftOut:
    """Entries of a folder: names of hidden ones, how many are no images by their ending, and images of no class."""

    hidden: list[str]
    others: Counter[str]
    loose: int

    def told(self) -> str:
        listed = ", ".join(f"{shown(ending)}: {count}" for ending, count in sorted(self.others.items())[:8])
        names = ", ".join(shown(name) for name in sorted(set(self.hidden))[:4])
        parts = [f"{self.others.total()} files that are no images by their ending ({listed})"] * bool(self.others)
        parts += [f"{self.loose} images beside the class folders"] * bool(self.loose)
        parts += [f"{len(self.hidden)} hidden or system entries ({names})"] * bool(self.hidden)
        return " and ".join(parts)


def folder_rows(root: Path, *, follow_links: bool = False) -> Rows:
    """The rows of a folder: of its parquet or arrow files if it has any, else class by class, each in order of names.

    A file that names the class of each image (``data.annotations``) counts instead of class folders.

    Hidden files and folders and those of operating systems are left out, and so are files that are no images; the notes
    say how many. Folders below a class belong to that class, as in Tiny ImageNet.

    Raises:
        BadInputError: training and test data together, no images, or, unless ``follow_links``, a link that leaves it.
    """
    tree = Tree(root, follow_links)
    if is_saved_to_disk(root):
        return arrow_rows(root)
    entries = sorted(entry.name for entry in root.iterdir())
    names = [name for name in entries if not is_hidden(name)]
    parquet = [root / name for name in names if name.lower().endswith(".parquet")]
    parquet = parquet or _of_repository(root, names)
    if parquet:
        return _parquet_rows(parquet, tree, names)
    annotated = annotated_rows(tree)
    if annotated is not None:
        return annotated
    classes = [name for name in names if tree.inside(root / name).is_dir()]
    _check_layout(root, classes)
    loose = sum(Path(name).suffix.lower() in SUFFIXES for name in set(names) - set(classes))
    left_out = _LeftOut([name for name in entries if is_hidden(name)], Counter(), loose)
    files = [(path, label) for label, name in enumerate(classes) for path in _files(root / name, tree, left_out)]
    if not files:
        found = f"; left out {told}" if (told := left_out.told()) else ""
        raise BadInputError(f"{shown(root)}: no images in its class folders {shown(classes[:6])}{found}")
    labels = np.array([label for _, label in files], dtype=np.int64)
    beside, notes = _names_beside(tree, names)
    return Rows(
        ((path, shown(path)) for path, _ in files),
        labels,
        tuple(shown(label_in(root / name / name) or name) for name in classes),
        in_order_of_names=True,
        notes=(
            *([f"{shown(root)}: left out {told}"] if (told := left_out.told()) else []),
            *_merged(root, [(path.parent, classes[label]) for path, label in files]),
            *notes,
        ),
        beside=beside,
    )


def _merged(root: Path, places: list[tuple[Path, str]]) -> list[str]:
    """A note where a class has images in several folders, as one of them may hold masks or the like."""
    folders: dict[str, set[str]] = {}
    for folder, name in places:
        folders.setdefault(name, set()).add(str(folder.relative_to(root)))
    found = next((inside for inside in folders.values() if len(inside) > 1), None)
    if found is None:
        return []
    return [f"{shown(root)}: a class has images in several folders, which are all taken: {shown(sorted(found)[:6])}"]


def _names_beside(tree: Tree, names: list[str]) -> tuple[ClassNames | None, tuple[str, ...]]:
    """The class names in a file beside the class folders, or a note of why they cannot be read."""
    found = next((name for name in CLASS_FILES if name in names), None)
    try:
        return (None if found is None else read_class_names(tree.inside(tree.root / found))), ()
    except BadInputError as error:
        return None, (f"{error}; it was not used to number the classes",)


def _of_repository(root: Path, names: list[str]) -> list[Path]:
    """The parquet files of a data set's repository, all in ``data`` or in a folder called as its configuration.

    Or those of folders that are called by their label, as label=3.
    """
    labelled = any(label_in(root / name / name) is not None for name in names)
    if len(names) > MAX_IN_REPOSITORY and not labelled:
        return []
    folders = [root / name for name in names if (root / name).is_dir() and not (root / name).is_symlink()]
    files = [path for folder in folders for path in sorted(folder.glob("*.*")) if path.suffix.lower() == ".parquet"]
    files = [path for path in files if not is_hidden(path.name)]
    holders = list(dict.fromkeys(path.parent for path in files))
    if len(holders) > 1 and not labelled:
        listed = " or ".join(map(shown, holders[:6]))
        raise BadInputError(f"{shown(root)}: holds parquet files in several folders; did you mean {listed}?")
    return files


def _parquet_rows(paths: list[Path], tree: Tree, names: list[str]) -> Rows:
    words = [re.split(r"[-_.]", path.name.lower()) for path in paths]
    if len({next((word for word in each if word in SPLITS | _OTHER_PARTS), None) for each in words}) > 1:
        listed = ", ".join(map(shown, paths[:6]))
        raise BadInputError(
            f"{shown(tree.root)}: would mix training and test data; name one file of: {listed}; or a split, as hf:"
            f"{shown(tree.root)}:train (extra hf)"
        )
    check_whole(paths)
    rows = parquet_rows([tree.inside(path) for path in paths])
    beside = [name for name in names if paths[0].parent == tree.root and (tree.root / name).is_dir()]
    left = f"{shown(tree.root)}: its parquet files were read, and its folders left out: {shown(beside[:6])}"
    return replace(rows, notes=(*rows.notes, left)) if beside else rows


def _check_layout(root: Path, classes: list[str]) -> None:
    """Refuse a folder that holds splits, one folder around the classes, or images without classes."""
    if not classes:
        files = [path for path in root.iterdir() if path.is_file()]
        if any(RAW.search(path.name) for path in files):
            raise BadInputError(f"{shown(root)}: holds MNIST's raw files; {RAW_REMEDY}")
        packed = next((path.name for path in files if path.suffix.lower() in ARCHIVES), None)
        if packed is not None:
            raise BadInputError(f"{shown(root)}: holds archives, such as {shown(packed)}; unpack them")
        pickled = next((name for name, kind in _PICKLED.items() if (root / name).is_file()), None)
        known = f", or torchvision:{_PICKLED[pickled]}?root={shown(root.parent)}" if pickled else ""
        raise BadInputError(
            f"{shown(root)}: no parquet file and no class folder; use root/class_name/image.png, or name "
            f"a table of the images (.csv, .tsv or .jsonl, as {METADATA[0]}) with the columns file_name and "
            f"label{known}"
        )
    splits = [name for name in classes if _SPLIT_OF.fullmatch(name)]
    # Among classes, one that is called like a split may be a class, too, as passenger_train.
    alike = classes if all(name in splits or _LIKE_A_SPLIT.fullmatch(name) for name in classes) else splits
    told = [name for name in alike if any((root / name / file).is_file() for file in (ANNOTATIONS, *METADATA))]
    nested = told or [name for name in alike if next(_folders(root / name), None) is not None]
    if nested and (len(alike) == len(classes) or len(alike) > 1):
        listed = " or ".join(shown(root / name) for name in nested[:6])
        raise BadInputError(f"{shown(root)}: holds splits, each a folder in a class folder; did you mean {listed}?")
    if splits and len(splits) == len(classes):
        raise BadInputError(f"{shown(root)}: its folders {shown(splits)} are splits without class folders in them")
    nameless = len(classes) == 1 and classes[0].lower() in _NO_CLASS
    if nameless and next(_folders(root / classes[0]), None) is None:
        table = next((path for path in sorted(root.iterdir()) if path.suffix.lower() in TABLES), None)
        if table is not None:
            raise BadInputError(f"{shown(root)}: its only folder names no class; did you mean {shown(table)}?")
        raise BadInputError(
            f"{shown(root)}: its only folder is {classes[0]!r}, which names no class; give each class a folder of its "
            f"own, or put a file beside it: {METADATA[0]} with the columns file_name and label, or {ANNOTATIONS} with "
            "lines of a file's name, a tab and its class"
        )
    if len(classes) == 1:
        below = sorted(_folders(root / classes[0]))
        if len(below) > 1 or (below and (nameless or below[0] != IMAGES)):
            raise BadInputError(
                f"{shown(root / classes[0] / below[0])}: a folder in the only class folder; did you mean "
                f"{shown(root / classes[0])}?"
            )


def _folders(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_hidden(entry.name) and entry.is_dir(follow_symlinks=False):
                yield entry.name


def _files(folder: Path, tree: Tree, left_out: _LeftOut, depth: int = 0) -> Iterator[Path]:
    """The images of a class, sorted by name; what is left out is counted."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            left_out.hidden.append(entry.name)
            continue
        path = tree.inside(folder / entry.name) if entry.is_symlink() else folder / entry.name
        if entry.is_dir():
            linked = entry.is_symlink() and not tree.follow
            if linked or depth == MAX_DEPTH:
                reason = "a link to a folder" if linked else "too many folders in one another"
                raise BadInputError(f"{shown(path)}: {reason} in a class folder; copy its images into the class folder")
            yield from _files(path, tree, left_out, depth + 1)
        elif path.suffix.lower() in SUFFIXES:
            if not entry.is_file():
                raise BadInputError(f"{shown(path)}: not a regular file")
            yield path
        else:
            left_out.others[path.suffix.lower() or "no ending"] += 1
