"""What every source of images comes down to before anything is decoded."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.decode import Source
from neural_polarizer.errors import BadInputError, shown

TRUE_LABEL = "true_label"  # beside the attacker's, of images with a trigger
STATE, PARTS = "state.json", "dataset_dict.json"
"""Files that the ``save_to_disk`` of Hugging Face leaves beside a data set, and beside its splits."""

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"})
IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class", "cls", "category")

_NUMBERED = re.compile(r"(.*?)(\d+)([-_.]of[-_.]0*)(\d{1,9})(?!\d).*")  # train-00000-of-00002-0123456789abcdef.parquet


@dataclass(frozen=True)
class Rows:
    """The images still encoded, one label each, and the class names where the source has any."""

    items: Iterator[tuple[Source, str]]  # (image, its name for messages)
    # Int64 ``(n,)``, places in ``classes`` if there are any; or text ``(n,)``, which names the classes.
    labels: np.ndarray
    classes: tuple[str, ...] | None  # their names
    in_order_of_names: bool = False  # whether the labels only follow from sorting the names, as those of folders do
    notes: tuple[str, ...] = ()  # what the user should know of how the source was read
    beside: ClassNames | None = None  # class names in a file beside class folders


def pick(found: Sequence[str], wanted: Sequence[str], where: object, taken: str | None = None) -> str:
    """The one column among ``found`` that is named like ``wanted``, or the only one there is; none is refused.

    What is ``taken`` for something else is not that one.
    """
    for name in (*wanted, *(found if len(found) == 1 and taken not in found else ())):
        if found.count(name) == 1:
            return name
    raise BadInputError(f"{shown(where)}: needs one column {' or '.join(wanted)}; found {shown(list(found)[:10])}")


def label_in(path: Path) -> str | None:
    """The label of all rows of a file whose folder is called by it, as label=3 (Spark and pyarrow partition so)."""
    column, _, value = path.parent.name.partition("=")
    return unquote(value) if value and column in LABEL_COLUMNS else None


def attacked_note(path: Path) -> str:
    """What the user should know of a file that has true labels beside others."""
    return (
        f"{shown(path)}: its column {TRUE_LABEL} tells of images with a trigger, under the attacker's labels; "
        "--triggered is for these"
    )


def is_saved_to_disk(folder: Path) -> bool:
    """Whether ``folder`` is one data set, or several splits of one, of ``save_to_disk``."""
    return (folder / STATE).is_file() or (folder / PARTS).is_file()


def check_whole(paths: Sequence[Path]) -> None:
    """Refuse numbered files of which one is not there, as after a download that was broken off, or that are mixed."""
    sets: dict[tuple[str, str], dict[int, re.Match[str]]] = {}
    for path in paths:
        if found := _NUMBERED.fullmatch(path.name):
            sets.setdefault((str(path.parent / found[1]), found[4]), {})[int(found[2])] = found
    starts = [start for start, _ in sets]
    for (start, count), there in sets.items():
        if starts.count(start) > 1:
            counts = " and ".join(other for begun, other in sets if begun == start)
            raise BadInputError(f"{shown(start)}*: files of several numberings, of {counts}; keep one of them")
        first = int(int(count) in there)  # some count from 1
        missing = next(number for number in range(first, len(there) + first + 1) if number not in there)
        if missing < int(count) + first:
            found = there[min(there)]
            name = f"{missing:0{len(found[2])}}{found[3]}{count}"
            raise BadInputError(
                f"{shown(start + name)}*: missing, of {int(count)} numbered files only {len(there)} are there; fetch "
                "the others, or, where these are all that you want, name one file or rename them"
            )
